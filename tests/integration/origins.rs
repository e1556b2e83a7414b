//! Which pages may connect: what `docs/security.md` says about the server's own list, about Rails' check, and about which
//! headers that check needs.
//!
//! The app here checks as `ActionCable::Connection::Base#allow_request_origin?` does, with the Rack environment that
//! AnyCable's gem makes of a call: `HTTP_HOST` is the host of the URL without its port (`Host` cannot be forwarded), the
//! scheme is the URL's unless `X-Forwarded-Proto` is forwarded, and without an Origin the gem does not ask.

use serde_json::json;

use crate::support::rails::{Call, WELCOME};
use crate::support::raw::handshake;
use crate::support::{Answer, Driver, Rails, Raw, Stage};

const HOST: &str = "chat.example.com";
const FOREIGN: &str = "https://evil.example.net";
/// What the page about moving from Action Cable tells to set.
const HEADERS: &str = "cookie,origin,x-forwarded-for,x-forwarded-proto";

/// The refusal of a foreign origin as the gem words it.
const INVALID_REQUEST: &str =
    r#"{"type":"disconnect","reason":"invalid_request","reconnect":false}"#;

fn allows(call: &Call, allowed: &[&str]) -> bool {
    let Some(origin) = call.forwarded("origin") else {
        return true;
    };
    let (scheme, rest) = call.url().split_once("://").expect("a whole URL");
    let host = rest.split(['/', ':']).next().expect("a host");
    let scheme = call.forwarded("x-forwarded-proto").unwrap_or(scheme);
    origin == format!("{scheme}://{host}") || allowed.contains(&origin)
}

/// An app with Rails' check, and `allowed_request_origins` as given.
fn checking(allowed: &'static [&'static str]) -> Rails {
    let rails = Rails::start();
    rails.on(move |call| {
        (call.method == "connect").then(|| {
            if allows(call, allowed) {
                Answer::welcome(r#"{"user":"1"}"#, &[WELCOME])
            } else {
                Answer::json(&json!({ "status": 2, "transmissions": [INVALID_REQUEST] }))
            }
        })
    });
    rails
}

struct Site {
    stage: Stage,
    host: &'static str,
}

impl Site {
    fn new(driver: Driver, args: &[&str], allowed: &'static [&'static str]) -> Self {
        let rails = checking(allowed);
        let server = Stage::launch(driver, &rails)
            .args(args.iter().copied())
            .start();
        Self {
            stage: Stage { server, rails },
            host: HOST,
        }
    }

    /// A page of `origin` behind a proxy that ends TLS, as Caddy and kamal-proxy send it on.
    fn page(&self, origin: &str) -> Raw {
        let origin = format!("Origin: {origin}");
        let lines = [
            origin.as_str(),
            "X-Forwarded-Proto: https",
            "X-Forwarded-For: 203.0.113.7",
        ];
        let head: String = handshake("/cable", &lines)
            .split_inclusive("\r\n")
            .map(|line| match line.strip_prefix("Host: ") {
                Some(_) => format!("Host: {}\r\n", self.host),
                None => line.to_owned(),
            })
            .collect();
        let mut client = Raw::connect(self.stage.server.address());
        client.send(head.as_bytes());
        client
    }

    /// The same, as far as the 101.
    fn session(&self, origin: &str) -> Raw {
        let mut client = self.page(origin);
        assert_eq!(client.read_head().status(), 101, "{origin}");
        client
    }

    fn welcomes(&self, origin: &str) {
        assert_eq!(self.session(origin).next_text(), WELCOME, "{origin}");
    }

    fn refuses(&self, origin: &str) {
        let mut client = self.session(origin);
        assert_eq!(client.next_text(), INVALID_REQUEST, "{origin}");
        client.expect_close(1000, "Auth Failed");
    }
}

on_both_drivers! {
    fn by_default_nobody_checks_the_origin(driver: Driver) {
        let site = Site::new(driver, &[], &[]);
        site.welcomes("https://chat.example.com");
        site.welcomes(FOREIGN);
    }

    fn the_servers_own_list_refuses_before_the_app_is_asked(driver: Driver) {
        let site = Site::new(driver, &["--allowed_origins=chat.example.com"], &[]);
        site.welcomes("https://chat.example.com");
        assert_eq!(site.page(FOREIGN).read_head().status(), 403);
        assert_eq!(site.stage.rails.calls_to("connect").len(), 1);
    }

    fn rails_checks_when_the_origin_is_forwarded(driver: Driver) {
        let site = Site::new(driver, &[&format!("--headers={HEADERS}")], &[]);
        site.welcomes("https://chat.example.com");
        site.refuses(FOREIGN);
        site.refuses("http://chat.example.com");
    }

    fn without_the_forwarded_scheme_rails_refuses_every_page_of_https(driver: Driver) {
        let site = Site::new(driver, &["--headers=cookie,origin,x-forwarded-for"], &[]);
        site.refuses("https://chat.example.com");
        // Then the app has to name its own origin.
        let site = Site::new(driver, &["--headers=cookie,origin"], &["https://chat.example.com"]);
        site.welcomes("https://chat.example.com");
        site.refuses(FOREIGN);
    }

    fn a_page_with_a_port_has_to_be_named_in_the_app(driver: Driver) {
        let origin = "https://chat.example.com:8443";
        let headers = format!("--headers={HEADERS},host");
        let mut site = Site::new(driver, &[&headers], &[]);
        site.host = "chat.example.com:8443";
        site.refuses(origin);
        let mut site = Site::new(driver, &[&headers], &["https://chat.example.com:8443"]);
        site.host = "chat.example.com:8443";
        site.welcomes(origin);
        site.refuses(FOREIGN);
    }
}
