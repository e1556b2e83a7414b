//! The entry of the app: it takes an HTTP request from ringcable and returns the answer, as the gem's Rack handler does in
//! Rails.
//!
//! Owns the chat behind a lock and the order of what is broadcast. Called on the threads of `http`.
//! Source: `contract/rpc.md` §9.

use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::broadcaster::Broadcaster;
use super::channels;
use super::chat::{Chat, Publication};
use super::http::{Request, Response};
use super::rpc::{Answer, CommandCall, ConnectCall, DisconnectCall, json};
use crate::log::Sparse;

#[derive(Debug)]
pub struct App {
    /// The whole `Authorization` value that a request must have.
    authorization: Option<String>,
    mount_path: &'static str,
    broadcaster: Broadcaster,
    chat: Mutex<Chat>,
    /// Limits a log record that any process on this machine can cause by sending requests that cannot be read.
    unreadable: Mutex<Sparse>,
}

impl App {
    pub fn new(
        rpc_token: Option<String>,
        mount_path: &'static str,
        broadcaster: Broadcaster,
    ) -> App {
        App {
            authorization: rpc_token.map(|token| format!("Bearer {token}")),
            mount_path,
            broadcaster,
            chat: Mutex::new(Chat::seeded(now_ms())),
            unreadable: Mutex::default(),
        }
    }

    /// Answers one RPC call; the order of the checks is the Ruby handler's.
    pub fn answer(&self, request: &Request) -> Response {
        if request.method != "POST" {
            return plain("404 Not Found", "Not found");
        }
        if self.authorization.is_some() && self.authorization.as_deref() != request.authorization {
            return plain("401 Unauthorized", "Unauthorized");
        }
        let Some(call) = request.path.strip_prefix(self.mount_path) else {
            return plain("404 Not Found", "Not found");
        };
        if !matches!(call, "/connect" | "/command" | "/disconnect") {
            return plain("404 Not Found", "Not found");
        }
        if request.body.is_empty() {
            return plain("422 Unprocessable Content", "Empty request body");
        }
        match self.dispatch(call, request.sid.unwrap_or_default(), request.body) {
            Ok(answer) => Response {
                status: "200 OK",
                body: json(&answer),
            },
            Err(error) => {
                self.log_unreadable(call, &error);
                plain("500 Internal Server Error", "Internal Server Error")
            }
        }
    }

    fn log_unreadable(&self, call: &str, error: &sonic_rs::Error) {
        let mut unreadable = self
            .unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(admitted) = unreadable.admit(Instant::now()) {
            let left_out = admitted.left_out();
            tracing::warn!(%error, call, left_out, "the demo app was sent a call it cannot read");
        }
    }

    fn dispatch(&self, call: &str, sid: &str, body: &[u8]) -> Result<Answer, sonic_rs::Error> {
        // A poisoned lock means that another call panicked in the middle. This is only a demo, so the chat is used as it is.
        let mut chat = self.chat.lock().unwrap_or_else(PoisonError::into_inner);
        let mut publications = Vec::new();
        let answer = match call {
            "/connect" => {
                let call: ConnectCall = sonic_rs::from_slice(body)?;
                channels::connect(sid, &call)
            }
            "/command" => {
                let call: CommandCall = sonic_rs::from_slice(body)?;
                channels::command(&mut chat, sid, &call, now_ms(), &mut publications)
            }
            _ => {
                let DisconnectCall { .. } = sonic_rs::from_slice(body)?;
                chat.leave_all(sid);
                Answer::success()
            }
        };
        // Queued while the lock is held, so that publications leave in the order of the changes that they announce.
        Ok(self
            .publish(publications)
            .map_or_else(Answer::error, |()| answer))
    }

    fn publish(&self, publications: Vec<Publication>) -> Result<(), String> {
        publications
            .into_iter()
            .try_for_each(|publication| self.broadcaster.broadcast(publication))
    }
}

fn plain(status: &'static str, body: &str) -> Response {
    Response {
        status,
        body: body.to_owned(),
    }
}

fn now_ms() -> u64 {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    since_epoch.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        method: &str,
        path: &str,
        authorization: Option<&str>,
        body: &str,
        status: &'static str,
        expected: &str,
    ) {
        let broadcaster = Broadcaster::start(None).unwrap();
        let app = App::new(Some("t".to_owned()), "/_anycable", broadcaster);
        let request = Request {
            method,
            path,
            authorization,
            sid: Some("s"),
            body: body.as_bytes(),
        };
        assert_eq!(
            app.answer(&request),
            plain(status, expected),
            "{method} {path} {body}"
        );
    }

    #[test]
    fn checks_come_in_the_order_of_the_ruby_handler() {
        let good = Some("Bearer t");
        check(
            "GET",
            "/_anycable/connect",
            None,
            "",
            "404 Not Found",
            "Not found",
        );
        check(
            "POST",
            "/_anycable/connect",
            Some("bearer t"),
            "{}",
            "401 Unauthorized",
            "Unauthorized",
        );
        check(
            "POST",
            "/elsewhere/connect",
            good,
            "{}",
            "404 Not Found",
            "Not found",
        );
        check(
            "POST",
            "/_anycable/connected",
            good,
            "{}",
            "404 Not Found",
            "Not found",
        );
        check(
            "POST",
            "/_anycable/connect",
            good,
            "",
            "422 Unprocessable Content",
            "Empty request body",
        );
        check(
            "POST",
            "/_anycable/connect",
            good,
            "{",
            "500 Internal Server Error",
            "Internal Server Error",
        );
        check(
            "POST",
            "/_anycable/connect",
            good,
            r#"{"env":{"url":"http://localhost/cable"}}"#,
            "200 OK",
            r#"{"status":2,"transmissions":["{\"type\":\"disconnect\",\"reason\":\"unauthorized\",\"reconnect\":false}"]}"#,
        );
        check(
            "POST",
            "/_anycable/disconnect",
            good,
            r#"{"env":{"url":"u"}}"#,
            "200 OK",
            r#"{"status":1,"env":{}}"#,
        );
    }
}
