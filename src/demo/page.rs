//! The page of the demo: its files, built into the binary. ringcable itself serves them, so that the demo needs only one
//! port.
//!
//! Owns the list of paths, which `startup` gives to the main listener when the demo is on.

const HTML: &str = "text/html; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// One file of the page.
#[derive(Debug, Clone, Copy)]
pub struct File {
    pub path: &'static str,
    pub content_type: &'static str,
    pub body: &'static [u8],
}

const fn file(path: &'static str, content_type: &'static str, body: &'static [u8]) -> File {
    File {
        path,
        content_type,
        body,
    }
}

/// All files, the page itself first.
pub const FILES: [File; 6] = [
    file("/", HTML, include_bytes!("assets/index.html")),
    file("/demo/app.js", JAVASCRIPT, include_bytes!("assets/app.js")),
    file(
        "/demo/live.js",
        JAVASCRIPT,
        include_bytes!("assets/live.js"),
    ),
    file("/demo/app.css", CSS, include_bytes!("assets/app.css")),
    file("/demo/icon.svg", SVG, include_bytes!("assets/icon.svg")),
    file(
        "/demo/cable.js",
        JAVASCRIPT,
        include_bytes!("assets/cable.js"),
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_the_page_names_is_served() {
        let [page, others @ ..] = FILES;
        assert_eq!((page.path, page.content_type), ("/", HTML));
        let html = std::str::from_utf8(page.body).expect("UTF-8");
        let mut named = 0;
        for piece in html.split('"').filter(|piece| piece.starts_with("/demo/")) {
            let is_served = others.iter().any(|file| file.path == piece);
            assert!(is_served, "{piece} is named but not served");
            named += 1;
        }
        assert!(named >= 3, "the page names its script, style and icon");
        assert!(
            !html.contains("//cdn") && !html.contains("https://fonts"),
            "no outside resources"
        );
    }
}
