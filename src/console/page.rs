//! The files of the page, built into the binary, and the answers around them.
//!
//! Owns file names, types and the security headers of these answers.

use std::borrow::Cow;

use crate::endpoints::Response;
use crate::endpoints::response::Headers;

const HTML: &str = "text/html; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";
const JSON: &str = "application/json";

const INDEX: &str = include_str!("page/index.html");
const LOGIN: &str = include_str!("page/login.html");
/// The place in the login page where a message goes.
const MESSAGE_MARK: &str = "<!-- message -->";

/// The browser runs, shows and calls only what this server sends, and no other page may put this one into a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// A part of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File {
    content_type: &'static str,
    text: &'static str,
}

/// The file called `name` below the console's path.
pub fn file(name: &str) -> Option<File> {
    let (content_type, text) = match name {
        "console.css" => (CSS, include_str!("page/console.css")),
        "console.js" => (JAVASCRIPT, include_str!("page/console.js")),
        "cable.js" => (JAVASCRIPT, include_str!("page/cable.js")),
        "charts.js" => (JAVASCRIPT, include_str!("page/charts.js")),
        "figures.js" => (JAVASCRIPT, include_str!("page/figures.js")),
        "sessions.js" => (JAVASCRIPT, include_str!("page/sessions.js")),
        "streams.js" => (JAVASCRIPT, include_str!("page/streams.js")),
        "icon.svg" => (SVG, include_str!("page/icon.svg")),
        _ => return None,
    };
    Some(File { content_type, text })
}

/// The page itself. `logged_in`: the page shows the log-out button.
pub fn index(logged_in: bool) -> Response {
    let text = if logged_in {
        Cow::Borrowed(INDEX)
    } else {
        // An operator on this machine has not logged in, so there is nothing to log out from.
        Cow::Owned(INDEX.replace(r#"id="log-out""#, r#"id="log-out" hidden"#))
    };
    guarded(200, HTML, into_bytes(text))
}

/// The login form. `message` says why the last try failed, or why no try can help.
pub fn login(status: u16, message: Option<&str>, can_log_in: bool) -> Response {
    let message = message.map_or(String::new(), |message| {
        format!(r#"<p class="refusal" role="alert">{message}</p>"#)
    });
    let mut text = LOGIN.replace(MESSAGE_MARK, &message);
    if !can_log_in {
        text = text.replace("<form ", "<form hidden ");
    }
    guarded(status, HTML, into_bytes(Cow::Owned(text)))
}

pub fn of_file(file: File) -> Response {
    guarded(200, file.content_type, Cow::Borrowed(file.text.as_bytes()))
}

/// An answer to the page's scripts.
pub fn json(status: u16, value: &impl serde::Serialize) -> Response {
    let body = sonic_rs::to_vec(value).expect("texts and numbers are always JSON");
    guarded(status, JSON, Cow::Owned(body))
}

/// `{"error": "<why>"}`.
pub fn refusal(status: u16, why: &str) -> Response {
    #[derive(serde::Serialize)]
    struct Refusal<'a> {
        error: &'a str,
    }
    json(status, &Refusal { error: why })
}

/// Redirects to `path`.
pub fn see_other(path: &'static str) -> Response {
    Response::empty(303).with_headers(vec![
        ("Location", Cow::Borrowed(path)),
        ("Cache-Control", Cow::Borrowed("no-store")),
    ])
}

fn guarded(status: u16, content_type: &'static str, body: Cow<'static, [u8]>) -> Response {
    let headers: Headers = [
        ("Content-Type", content_type),
        ("Cache-Control", "no-store"),
        ("Content-Security-Policy", POLICY),
        ("X-Content-Type-Options", "nosniff"),
        // Not "no-referrer": with it browsers send "null" as the `Origin` of the login form.
        ("Referrer-Policy", "same-origin"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
    ]
    .into_iter()
    .map(|(name, value)| (name, Cow::Borrowed(value)))
    .collect();
    Response {
        headers,
        body,
        ..Response::empty(status)
    }
}

fn into_bytes(text: Cow<'static, str>) -> Cow<'static, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named_files(text: &str) -> Vec<&str> {
        text.split(['"', '\''])
            .filter_map(|piece| {
                piece
                    .strip_prefix("/_console/")
                    .or_else(|| piece.strip_prefix("./"))
            })
            .filter(|name| name.contains('.'))
            .collect()
    }

    #[test]
    fn every_file_that_is_named_is_served_and_none_comes_from_elsewhere() {
        let mut waiting: Vec<&str> = [INDEX, LOGIN].into_iter().flat_map(named_files).collect();
        let mut seen = Vec::new();
        while let Some(name) = waiting.pop() {
            let file = file(name).unwrap_or_else(|| panic!("{name} is named but not served"));
            assert!(
                !file.text.contains("https://") && !file.text.contains("@import"),
                "{name}"
            );
            if !seen.contains(&name) {
                seen.push(name);
                waiting.extend(named_files(file.text));
            }
        }
        seen.sort_unstable();
        assert_eq!(
            seen,
            [
                "cable.js",
                "charts.js",
                "console.css",
                "console.js",
                "figures.js",
                "icon.svg",
                "sessions.js",
                "streams.js"
            ]
        );
    }

    #[test]
    fn nothing_on_the_page_needs_an_exception_from_the_policy() {
        for text in [INDEX, LOGIN] {
            assert!(
                !text.contains("style=") && !text.contains("<style") && !text.contains("onclick"),
                "inline parts"
            );
            assert!(!text.contains("<script>"), "inline script");
        }
        assert!(LOGIN.contains(MESSAGE_MARK) && LOGIN.contains("<form "));
    }

    #[test]
    fn answers_are_guarded_and_not_stored() {
        for response in [
            index(true),
            login(403, Some("No."), true),
            refusal(404, "gone"),
        ] {
            assert_eq!(response.header("Content-Security-Policy"), Some(POLICY));
            assert_eq!(response.header("Cache-Control"), Some("no-store"));
        }
        let text =
            |response: Response| String::from_utf8(response.body.into_owned()).expect("UTF-8");
        assert!(text(login(403, Some("No."), true)).contains(r#"role="alert">No.</p>"#));
        assert!(text(login(403, None, false)).contains("<form hidden "));
        assert!(!text(index(true)).contains(r#"id="log-out" hidden"#));
        assert!(text(index(false)).contains(r#"id="log-out" hidden"#));
        assert_eq!(text(refusal(404, "a \"b\"")), r#"{"error":"a \"b\""}"#);
    }
}
