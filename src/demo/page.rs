//! The page of the demo: its files, built into the binary. ringcable serves them, so that one port is enough.
//!
//! Owns the list of paths. Called by the HTTP front for GET requests when the demo is on.

const HTML: &str = "text/html; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

/// The content type and the bytes at `path` (a query string is ignored), or `None` when the demo has nothing there.
pub fn page(path: &str) -> Option<(&'static str, &'static [u8])> {
    let path = path.split('?').next().unwrap_or(path);
    let file: (&str, &[u8]) = match path {
        "/" => (HTML, include_bytes!("assets/index.html")),
        "/demo/app.js" => (JAVASCRIPT, include_bytes!("assets/app.js")),
        "/demo/live.js" => (JAVASCRIPT, include_bytes!("assets/live.js")),
        "/demo/app.css" => (CSS, include_bytes!("assets/app.css")),
        "/demo/icon.svg" => (SVG, include_bytes!("assets/icon.svg")),
        "/demo/actioncable.js" => (JAVASCRIPT, include_bytes!("assets/vendor/actioncable.js")),
        "/demo/actioncable.LICENSE" => (TEXT, include_bytes!("assets/vendor/actioncable.LICENSE")),
        _ => return None,
    };
    Some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_the_page_names_is_served() {
        let (content_type, html) = page("/?name=Ann").expect("the page");
        assert_eq!(content_type, HTML);
        let html = std::str::from_utf8(html).expect("UTF-8");
        let mut named = 0;
        for piece in html.split('"').filter(|piece| piece.starts_with("/demo/")) {
            assert!(page(piece).is_some(), "{piece} is named but not served");
            named += 1;
        }
        assert!(named >= 3, "the page names its script, style and icon");
        assert!(
            !html.contains("//cdn") && !html.contains("https://fonts"),
            "no outside resources"
        );
    }

    #[test]
    fn other_paths_are_not_the_demo() {
        for path in [
            "",
            "/demo",
            "/demo/",
            "/index.html",
            "/cable",
            "/demo/../app.js",
        ] {
            assert_eq!(page(path), None, "{path}");
        }
    }
}
