//! The log records about refused requests. An operator reads them at the default level, so they name what to change. A
//! client can cause them at any rate, so each kind is written rarely ([`Notices`](crate::shard::notices::Notices)). They
//! never show tokens or keys.

use std::net::IpAddr;

use crate::endpoints::hints;
use crate::endpoints::sse::SseError;
use crate::log::cut;
use crate::protocol::sid::SID_BYTES_MAX;
use crate::session::Flaw;
use crate::shard::Shard;
use crate::shard::http::listener::ListenerRules;
use crate::shard::notices::Notice;
use crate::wire::handshake::{Subprotocol, UpgradeError};
use crate::wire::http_head::HttpError;
use crate::wire::http_request::RequestHead;
use crate::wire::query::BadQuery;

/// The endpoint for which a token was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secured {
    Broadcast,
    Api,
}

/// Bytes that are not a valid request, or a request beyond a limit.
pub fn malformed(shard: &Shard, peer: IpAddr, error: &HttpError) {
    tracing::debug!(context = "http", shard = shard.id, %peer, %error, "refused a malformed request");
    let advice = match error {
        HttpError::HeadTooLarge { .. } => {
            "raise --max_head_size (ANYCABLE_MAX_HEAD_SIZE) if its cookies and headers are meant to be so large"
        }
        HttpError::TooManyHeaders { .. } => "a proxy or a client adds too many header lines",
        _ => return,
    };
    if let Some(admitted) = shard.notices.admit(Notice::HeadTooLarge) {
        tracing::warn!(
            context = "http",
            shard = shard.id,
            %peer,
            left_out = admitted.left_out(),
            "refused a request with {}, {error}: {advice}",
            error.status()
        );
    }
}

/// A head that exceeds the limit on heads read at once.
pub fn too_many_large_heads(shard: &Shard, peer: IpAddr) {
    if let Some(admitted) = shard.notices.admit(Notice::LargeHeads) {
        tracing::warn!(
            context = "http",
            shard = shard.id,
            %peer,
            left_out = admitted.left_out(),
            "refused a request with 503: too many large heads are under way at once"
        );
    }
}

/// A body whose reading was given up.
pub fn slow_body(shard: &Shard, peer: IpAddr, data_bytes: usize) {
    if let Some(admitted) = shard.notices.admit(Notice::SlowBody) {
        tracing::warn!(
            context = "http",
            shard = shard.id,
            %peer,
            bytes = data_bytes,
            left_out = admitted.left_out(),
            "gave up a request whose body comes too slowly: 16 KiB per second are the least, after 10 seconds"
        );
    }
}

/// A part of a request that was ignored. The client is served all the same.
pub fn flaw(shard: &Shard, sid: &str, peer: IpAddr, flaw: &Flaw) {
    match flaw {
        Flaw::RequestIdTooLong { bytes } => request_id(shard, peer, *bytes),
        Flaw::PingInterval(text) => ping_interval(shard, sid, text),
        Flaw::Query(error) => bad_query(shard, sid, error),
    }
}

fn request_id(shard: &Shard, peer: IpAddr, bytes: usize) {
    if let Some(admitted) = shard.notices.admit(Notice::RequestIdTooLong) {
        tracing::warn!(
            context = "ws",
            shard = shard.id,
            %peer,
            left_out = admitted.left_out(),
            "an X-Request-ID of {bytes} bytes is not taken as session id, a random one is: {SID_BYTES_MAX} bytes are the most"
        );
    }
}

fn ping_interval(shard: &Shard, sid: &str, pi: &str) {
    if let Some(admitted) = shard.notices.admit(Notice::BadPingInterval) {
        tracing::warn!(
            context = "ws",
            sid,
            shard = shard.id,
            pi = %cut(pi),
            left_out = admitted.left_out(),
            "pi is not a whole number of seconds, the default is kept"
        );
    }
}

fn bad_query(shard: &Shard, sid: &str, error: &BadQuery) {
    if let Some(admitted) = shard.notices.admit(Notice::BadQuery) {
        tracing::warn!(
            context = "jwt",
            sid,
            shard = shard.id,
            %error,
            left_out = admitted.left_out(),
            "cannot look for a token in the query"
        );
    }
}

/// A request for server-sent events that cannot be understood.
pub fn events(shard: &Shard, peer: IpAddr, error: &SseError) {
    tracing::debug!(context = "sse", shard = shard.id, %peer, %error, "refused a request for events");
}

/// An upgrade that was refused.
pub fn upgrade(shard: &Shard, head: &RequestHead, peer: IpAddr, error: UpgradeError) {
    shard.counters().upgrade_refused_total.add(1);
    tracing::debug!(context = "ws", shard = shard.id, %peer, %error, "refused an upgrade");
    match error {
        UpgradeError::OriginNotAllowed => origin(shard, head, peer),
        UpgradeError::NoConnectionUpgrade | UpgradeError::NoWebSocketUpgrade
            if wants_websocket(head) =>
        {
            upgrade_lost(shard, head, peer);
        }
        _ => {}
    }
}

fn origin(shard: &Shard, head: &RequestHead, peer: IpAddr) {
    let Some(admitted) = shard.notices.admit(Notice::OriginRefused) else {
        return;
    };
    let origin = shown_origin(head);
    tracing::warn!(
        context = "ws",
        shard = shard.id,
        %peer,
        left_out = admitted.left_out(),
        "refused a WebSocket {origin}: --allowed_origins (ANYCABLE_ALLOWED_ORIGINS) has {}; add the host, with its port if \
         the URL has one",
        shard.config.server.allowed_origins.join(",")
    );
}

fn shown_origin(head: &RequestHead) -> String {
    let origins: Vec<&str> = head.items("origin").collect();
    match origins.as_slice() {
        [] => "without an Origin header".to_owned(),
        all => format!("of the origin {}", cut(&all.join(", "))),
    }
}

/// Proxies that do not know WebSockets drop `Upgrade` and `Connection` and pass the other headers on.
fn upgrade_lost(shard: &Shard, head: &RequestHead, peer: IpAddr) {
    let Some(admitted) = shard.notices.admit(Notice::UpgradeLost) else {
        return;
    };
    tracing::warn!(
        context = "ws",
        shard = shard.id,
        %peer,
        left_out = admitted.left_out(),
        "refused a WebSocket of {}: its Upgrade header is missing, a proxy in front does not pass it on (nginx needs \
         proxy_http_version 1.1 and proxy_set_header for Upgrade and Connection)",
        cut(head.path())
    );
}

/// A request for a path that is not served.
pub fn not_found(shard: &Shard, rules: &ListenerRules, head: &RequestHead, peer: IpAddr) {
    shard.counters().http_not_found_total.add(1);
    tracing::debug!(context = "http", shard = shard.id, %peer, path = %cut(head.path()), "no such path");
    if wants_websocket(head) {
        unknown_path(shard, rules, head, peer);
    } else if head.method() == "POST" {
        misplaced_broadcast(shard, head, peer);
    }
}

fn unknown_path(shard: &Shard, rules: &ListenerRules, head: &RequestHead, peer: IpAddr) {
    let Some(admitted) = shard.notices.admit(Notice::UnknownPath) else {
        return;
    };
    let server = &shard.config.server;
    let hint = if rules.features.main {
        hints::unknown_path(&cut(head.path()), &server.paths)
    } else {
        format!("WebSockets are served on port {}", server.port)
    };
    tracing::warn!(
        context = "ws",
        shard = shard.id,
        %peer,
        left_out = admitted.left_out(),
        "refused a WebSocket of {}: {hint}",
        cut(head.path())
    );
}

fn misplaced_broadcast(shard: &Shard, head: &RequestHead, peer: IpAddr) {
    let Some(http) = &shard.config.broadcast.http else {
        return;
    };
    if !hints::is_meant_for(head.path(), &http.path) {
        return;
    }
    let Some(admitted) = shard.notices.admit(Notice::BroadcastMisplaced) else {
        return;
    };
    tracing::warn!(
        context = "broadcast",
        shard = shard.id,
        %peer,
        left_out = admitted.left_out(),
        "no broadcasts are taken at {} of the host {}: they are taken at {} on port {}; set http_broadcast_url in the app to \
         that",
        cut(head.path()),
        cut(head.host()),
        http.path,
        http.port
    );
}

/// A broadcast or API request that got a 401.
pub fn unauthorized(shard: &Shard, secured: Secured, head: &RequestHead, peer: IpAddr) {
    shard.counters().http_unauthorized_total.add(1);
    let config = &shard.config;
    let (notice, context, what, option, derived) = match secured {
        Secured::Broadcast => (
            Notice::BroadcastUnauthorized,
            "broadcast",
            "a broadcast",
            "broadcast_key",
            config
                .broadcast
                .http
                .as_ref()
                .map(|http| http.token_derived),
        ),
        Secured::Api => (
            Notice::ApiUnauthorized,
            "api",
            "an API request",
            "api_secret",
            config.api.as_ref().map(|api| api.token_derived),
        ),
    };
    let Some(admitted) = shard.notices.admit(notice) else {
        return;
    };
    tracing::warn!(
        context,
        shard = shard.id,
        %peer,
        left_out = admitted.left_out(),
        "refused {what} with 401, {}: {}",
        hints::bad_authorization(head.header("authorization")),
        hints::shared_secret(option, derived.unwrap_or_default())
    );
}

/// A client that offers only unknown subprotocols. It is served all the same, as the reference does.
pub fn subprotocol(shard: &Shard, head: &RequestHead, peer: IpAddr) {
    let Some(offered) = head
        .combined("sec-websocket-protocol")
        .and_then(|offered| hints::offered_subprotocols(&offered))
    else {
        return;
    };
    let Some(admitted) = shard.notices.admit(Notice::UnknownSubprotocol) else {
        return;
    };
    tracing::warn!(
        context = "ws",
        shard = shard.id,
        %peer,
        left_out = admitted.left_out(),
        "a client offers only subprotocols that are not spoken here ({}), browsers then close at once: it must offer {} or {}",
        cut(&offered),
        Subprotocol::V1Json.as_str(),
        Subprotocol::V1ExtJson.as_str()
    );
}

/// Whether the client made this request for a WebSocket, even if a proxy removed a part of it.
fn wants_websocket(head: &RequestHead) -> bool {
    head.header_has_token("upgrade", "websocket") || head.header("sec-websocket-key").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::http_head::HeadLimits;

    fn head(fields: &str) -> RequestHead {
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let (head, _) = RequestHead::decode(text.as_bytes(), &HeadLimits::default())
            .expect("a good head")
            .expect("a whole head");
        head
    }

    #[test]
    fn a_lost_websocket_is_known_by_what_a_proxy_passes_on() {
        let check = |fields: &str, expected: bool| {
            assert_eq!(wants_websocket(&head(fields)), expected, "{fields}");
        };
        check("", false);
        check("Connection: upgrade\r\n", false);
        check("Upgrade: h2c\r\n", false);
        check("Upgrade: h2c, WebSocket\r\n", true);
        check("Sec-WebSocket-Key: x\r\n", true);
    }

    #[test]
    fn every_origin_of_a_request_is_shown() {
        let check = |fields: &str, expected: &str| {
            assert_eq!(shown_origin(&head(fields)), expected, "{fields}");
        };
        check("", "without an Origin header");
        check("Origin: http://a\r\n", "of the origin http://a");
        let both = "Origin: http://a\r\nOrigin: http://b\r\n";
        check(both, "of the origin http://a, http://b");
    }
}
