//! Who may use the console: the rule for loopback, the login, the cookie, and where a request may come from.
//!
//! Pure: the time is an argument. The console can end sessions and send messages to clients, so the rules are strict: in
//! case of doubt a login is needed.

use crate::auth::keys::{CONSOLE_LABEL, constant_time_eq, derive_token, hmac_sha256_hex};
use crate::config::{ConsoleConfig, is_loopback_host};
use crate::wire::http_request::RequestHead;

/// How long a login lasts.
pub const LOGIN_SECS: u64 = 12 * 60 * 60;
/// The header that every action must carry. A browser lets a page of another origin set it only after a preflight request,
/// and the console never answers a preflight.
pub const ACTION_HEADER: &str = "x-ringcable-console";

const COOKIE: &str = "ringcable_console";
/// Header fields that show that a proxy is in front. A proxy on this machine also connects from loopback, but its clients
/// may be anywhere.
const PROXY_FIELDS: [&str; 10] = [
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-real-ip",
    "cf-connecting-ip",
    "true-client-ip",
];

/// How a request may use the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The request comes from this machine and not through a proxy.
    Local,
    /// The request carries the cookie of a login.
    LoggedIn,
    LoginNeeded,
}

impl Access {
    pub fn is_granted(self) -> bool {
        self != Access::LoginNeeded
    }
}

/// The access rules of the running console.
#[derive(Debug)]
pub struct Guard {
    /// `None`: nobody can log in.
    keys: Option<Keys>,
    bound_to_loopback: bool,
}

#[derive(Debug)]
struct Keys {
    secret: String,
    token: String,
}

impl Guard {
    pub fn new(config: &ConsoleConfig) -> Self {
        let keys = config.secret.as_ref().map(|secret| Keys {
            secret: secret.clone(),
            token: derive_token(secret, CONSOLE_LABEL),
        });
        Self {
            keys,
            bound_to_loopback: config.bound_to_loopback,
        }
    }

    /// Whether a login is possible at all.
    pub fn has_login(&self) -> bool {
        self.keys.is_some()
    }

    pub fn access(&self, head: &RequestHead, now_unix_secs: u64) -> Access {
        if self.bound_to_loopback && is_local(head) {
            return Access::Local;
        }
        let Some(keys) = &self.keys else {
            return Access::LoginNeeded;
        };
        let logged_in = head
            .header_values("cookie")
            .flat_map(|list| list.split(';'))
            .filter_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
            .any(|value| keys.cookie_is_good(value, now_unix_secs));
        if logged_in {
            Access::LoggedIn
        } else {
            Access::LoginNeeded
        }
    }

    /// The `Set-Cookie` for a login with `given`, which is the console's token or the application secret itself. `None`: it
    /// is neither.
    pub fn log_in(
        &self,
        head: &RequestHead,
        given: &str,
        tls: bool,
        now_unix_secs: u64,
    ) -> Option<String> {
        let keys = self.keys.as_ref()?;
        // Both are always compared, so that the time does not show which one matched.
        let is_token = constant_time_eq(given, &keys.token);
        let is_secret = constant_time_eq(given, &keys.secret);
        if !(is_token | is_secret) {
            return None;
        }
        let value = keys.cookie(now_unix_secs + LOGIN_SECS);
        Some(set_cookie(head, &value, LOGIN_SECS, tls))
    }

    /// The `Set-Cookie` that ends a login in this browser.
    pub fn log_out(head: &RequestHead, tls: bool) -> String {
        set_cookie(head, "", 0, tls)
    }
}

impl Keys {
    /// The server stores nothing about a login: the cookie holds the end of the login and a signature of it.
    fn cookie(&self, end_unix_secs: u64) -> String {
        let mut signed = b"console login until ".to_vec();
        signed.extend_from_slice(&end_unix_secs.to_be_bytes());
        let signature = hmac_sha256_hex(&self.token, &signed);
        format!("{end_unix_secs}.{signature}")
    }

    fn cookie_is_good(&self, value: &str, now_unix_secs: u64) -> bool {
        let Some((end, _)) = value.split_once('.') else {
            return false;
        };
        let Ok(end) = end.parse::<u64>() else {
            return false;
        };
        constant_time_eq(value, &self.cookie(end)) && now_unix_secs < end
    }
}

/// The cookie's path is the console's, so that an app behind the same host name never gets it.
fn set_cookie(head: &RequestHead, value: &str, age_secs: u64, tls: bool) -> String {
    // The first item is of the first proxy, which is the one that the browser connects to.
    let forwarded = head.items("x-forwarded-proto").next();
    let over_tls = tls || forwarded.is_some_and(|proto| proto.eq_ignore_ascii_case("https"));
    let secure = if over_tls { "; Secure" } else { "" };
    format!(
        "{COOKIE}={value}; Path={}; Max-Age={age_secs}; HttpOnly; SameSite=Strict{secure}",
        super::PATH
    )
}

/// Whether the request names this machine and came through no proxy. The name is checked because any web page may use a name
/// of its own that resolves to 127.0.0.1. HTTP/1.0 is refused because proxies with default settings use it.
///
/// A target in absolute form holds a second name; both names must be of this machine. One case is not detected: a proxy on
/// this machine that adds no header field and sends `Host: localhost` itself.
fn is_local(head: &RequestHead) -> bool {
    head.version_minor() >= 1
        && [Some(head.host()), head.header("host")]
            .iter()
            .all(|name| name.is_some_and(|name| is_loopback_host(without_port(name))))
        && !PROXY_FIELDS.iter().any(|name| head.header(name).is_some())
}

fn without_port(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or(""),
        None => authority.split(':').next().unwrap_or(""),
    }
}

/// Whether a request that changes something comes from the console's own page: `Sec-Fetch-Site` and `Origin` must not
/// contradict that, and at least one of them must be there.
pub fn is_from_own_page(head: &RequestHead) -> bool {
    let by_site = head
        .header("sec-fetch-site")
        .map(|site| site == "same-origin" && !head.is_repeated("sec-fetch-site"));
    let by_origin = head.header("origin").map(|_| origin_is_host(head));
    match (by_site, by_origin) {
        (None, None) => false,
        (by_site, by_origin) => by_site.unwrap_or(true) && by_origin.unwrap_or(true),
    }
}

/// The same for the upgrade. Browsers always send `Origin` with an upgrade, but they differ in `Sec-Fetch-Site`.
pub fn upgrade_is_from_own_page(head: &RequestHead) -> bool {
    origin_is_host(head)
}

fn origin_is_host(head: &RequestHead) -> bool {
    let Some(origin) = head
        .header("origin")
        .filter(|_| !head.is_repeated("origin"))
    else {
        return false;
    };
    let authority = origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"));
    authority.is_some_and(|authority| {
        !authority.is_empty() && authority.eq_ignore_ascii_case(head.host())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::http_head::HeadLimits;

    const NOW: u64 = 1_800_000_000;

    fn head(fields: &str) -> RequestHead {
        let text = format!("GET /_console HTTP/1.1\r\n{fields}\r\n\r\n");
        let limits = HeadLimits::default();
        let (head, _) = RequestHead::decode(text.as_bytes(), &limits)
            .expect("a good head")
            .expect("a whole head");
        head
    }

    fn guard(secret: Option<&str>, bound_to_loopback: bool) -> Guard {
        Guard::new(&ConsoleConfig {
            secret: secret.map(str::to_owned),
            bound_to_loopback,
        })
    }

    fn cookie_of(set_cookie: &str) -> String {
        format!(
            "Cookie: theme=dark; {}",
            set_cookie.split(';').next().expect("a pair")
        )
    }

    #[test]
    fn loopback_is_free_only_for_who_asks_this_machine_itself() {
        let check = |fields: &str, expected: Access| {
            assert_eq!(
                guard(Some("S"), true).access(&head(fields), NOW),
                expected,
                "{fields}"
            );
        };
        check("Host: localhost:8080", Access::Local);
        check("Host: LOCALHOST", Access::Local);
        check("Host: 127.0.0.1:8080", Access::Local);
        check("Host: 127.8.9.1", Access::Local);
        check("Host: [::1]:8080", Access::Local);
        for host in [
            "example.com",
            "127.0.0.1.example.com",
            "localhost.example.com",
            "10.0.0.1",
            "[::2]",
            "",
        ] {
            check(&format!("Host: {host}"), Access::LoginNeeded);
        }
        for field in PROXY_FIELDS {
            check(
                &format!("Host: localhost\r\n{field}: x"),
                Access::LoginNeeded,
            );
        }
        assert_eq!(
            guard(None, false).access(&head("Host: localhost"), NOW),
            Access::LoginNeeded
        );
    }

    #[test]
    fn a_target_with_a_name_is_a_second_name() {
        let check = |name: &str, host: &str, expected: Access| {
            let bytes = format!("GET http://{name}/_console HTTP/1.1\r\nHost: {host}\r\n\r\n");
            let (head, _) = RequestHead::decode(bytes.as_bytes(), &HeadLimits::default())
                .expect("a good head")
                .expect("a whole head");
            assert_eq!(
                guard(None, true).access(&head, NOW),
                expected,
                "{name} {host}"
            );
        };
        check("localhost", "localhost:8080", Access::Local);
        check("127.0.0.1:8080", "[::1]", Access::Local);
        check("localhost", "evil.example", Access::LoginNeeded);
        check("evil.example", "localhost", Access::LoginNeeded);
        check("localhost", "", Access::LoginNeeded);
        check(
            "localhost:80@evil.example",
            "evil.example",
            Access::LoginNeeded,
        );
    }

    #[test]
    fn http_1_0_is_what_a_proxy_with_bare_settings_speaks() {
        let bytes = b"GET /_console HTTP/1.0\r\nHost: localhost\r\n\r\n";
        let (head, _) = RequestHead::decode(bytes, &HeadLimits::default())
            .expect("a good head")
            .expect("a whole head");
        assert_eq!(guard(None, true).access(&head, NOW), Access::LoginNeeded);
    }

    #[test]
    fn the_token_and_the_secret_open_the_console_for_half_a_day() {
        let guard = guard(Some("S"), false);
        let plain = head("Host: a");
        // HMAC-SHA256 of "console-cable" with the key "S".
        let token = derive_token("S", "console-cable");
        for given in [token.as_str(), "S"] {
            let set_cookie = guard
                .log_in(&plain, given, false, NOW)
                .expect("the right word");
            assert!(
                set_cookie.ends_with("; Path=/_console; Max-Age=43200; HttpOnly; SameSite=Strict"),
                "{set_cookie}"
            );
            let with_cookie = head(&format!("Host: a\r\n{}", cookie_of(&set_cookie)));
            assert_eq!(guard.access(&with_cookie, NOW), Access::LoggedIn);
            assert_eq!(
                guard.access(&with_cookie, NOW + LOGIN_SECS - 1),
                Access::LoggedIn
            );
            assert_eq!(
                guard.access(&with_cookie, NOW + LOGIN_SECS),
                Access::LoginNeeded
            );
        }
        for given in ["", "s", "S ", &token[1..], &token.to_uppercase()] {
            assert_eq!(guard.log_in(&plain, given, false, NOW), None, "{given}");
        }
        assert!(
            guard
                .log_in(&plain, "S", true, NOW)
                .expect("right")
                .ends_with("; Secure")
        );
        let proxied = head("Host: a\r\nX-Forwarded-Proto: https");
        assert!(
            guard
                .log_in(&proxied, "S", false, NOW)
                .expect("right")
                .ends_with("; Secure")
        );
        // Proxies append to the list or add a line: the first item is the one that the browser's proxy wrote.
        for (lines, secure) in [
            ("X-Forwarded-Proto: HTTPS, http", true),
            ("X-Forwarded-Proto: https\r\nX-Forwarded-Proto: http", true),
            ("X-Forwarded-Proto: http\r\nX-Forwarded-Proto: https", false),
        ] {
            let cookie = guard.log_in(&head(&format!("Host: a\r\n{lines}")), "S", false, NOW);
            assert_eq!(
                cookie.expect("right").ends_with("; Secure"),
                secure,
                "{lines}"
            );
        }
    }

    #[test]
    fn a_cookie_that_we_did_not_make_is_worth_nothing() {
        let ours = guard(Some("S"), false);
        let theirs = guard(Some("T"), false)
            .log_in(&head("Host: a"), "T", false, NOW)
            .expect("right");
        let set_cookie = ours
            .log_in(&head("Host: a"), "S", false, NOW)
            .expect("right");
        let good = cookie_of(&set_cookie);
        let later = good.replace(
            &(NOW + LOGIN_SECS).to_string(),
            &(NOW + 2 * LOGIN_SECS).to_string(),
        );
        assert_ne!(good, later);
        for bad in [
            later.as_str(),
            &cookie_of(&theirs),
            &good[..good.len() - 1],
            &good.replace("ringcable_console", "ringcable_consol"),
            "Cookie: ringcable_console=",
            "Cookie: ringcable_console=.",
            "Cookie: ringcable_console=-1.00",
            "Cookie: ringcable_console=99999999999999999999999.00",
        ] {
            assert_eq!(
                ours.access(&head(&format!("Host: a\r\n{bad}")), NOW),
                Access::LoginNeeded,
                "{bad}"
            );
        }
        assert_eq!(
            ours.access(&head(&format!("Host: a\r\n{good}")), NOW),
            Access::LoggedIn
        );
    }

    #[test]
    fn without_a_secret_nobody_logs_in() {
        let guard = guard(None, true);
        assert!(!guard.has_login());
        assert_eq!(guard.log_in(&head("Host: localhost"), "", false, NOW), None);
    }

    #[test]
    fn other_pages_cannot_act() {
        let check = |fields: &str, action: bool, upgrade: bool| {
            let head = head(&format!("Host: a.example:80\r\n{fields}X: y"));
            assert_eq!(
                (is_from_own_page(&head), upgrade_is_from_own_page(&head)),
                (action, upgrade),
                "{fields}"
            );
        };
        check("", false, false);
        check("Origin: http://a.example:80\r\n", true, true);
        check("Origin: https://A.example:80\r\n", true, true);
        check("Origin: http://a.example\r\n", false, false);
        check("Origin: http://evil.example\r\n", false, false);
        check("Origin: null\r\n", false, false);
        check("Origin: a.example:80\r\n", false, false);
        check("Sec-Fetch-Site: same-origin\r\n", true, false);
        check(
            "Sec-Fetch-Site: same-site\r\nOrigin: http://a.example:80\r\n",
            false,
            true,
        );
        check(
            "Sec-Fetch-Site: same-origin\r\nOrigin: http://proxied.example\r\n",
            false,
            false,
        );
        check(
            "Sec-Fetch-Site: cross-site\r\nOrigin: http://evil.example\r\n",
            false,
            false,
        );
        check("Sec-Fetch-Site: none\r\n", false, false);
        let own = "Origin: http://a.example:80\r\n";
        check(&own.repeat(2), false, false);
        check(
            &format!("{own}Origin: http://evil.example\r\n"),
            false,
            false,
        );
        let same = "Sec-Fetch-Site: same-origin\r\n";
        check(
            &format!("{same}Sec-Fetch-Site: cross-site\r\n"),
            false,
            false,
        );
    }
}
