//! A file of the binary that is served as it is, such as the demo's page.
//!
//! Called by `shard::http` for any method, because the routing table knows only paths.

use std::borrow::Cow;

use super::Response;

/// A file and where it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    pub path: &'static str,
    pub content_type: &'static str,
    pub body: &'static [u8],
}

impl Page {
    pub fn response(self) -> Response {
        Response {
            headers: vec![("Content-Type", Cow::Borrowed(self.content_type))],
            body: Cow::Borrowed(self.body),
            ..Response::empty(200)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_its_bytes_and_their_type() {
        let page = Page {
            path: "/",
            content_type: "text/css",
            body: b"p {}",
        };
        let response = page.response();
        assert_eq!(response.status, 200);
        assert_eq!(response.header("content-type"), Some("text/css"));
        assert_eq!(&*response.body, b"p {}");
        assert!(!response.close);
    }
}
