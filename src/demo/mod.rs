//! `--demo`: a small chat app that stands in for the Rails app, so that ringcable can be tried with nothing else installed.
//!
//! It owns the loopback HTTP server that answers the RPC calls, the chat state behind it, the sender that posts to
//! `/_broadcast`, and the page with its scripts. It talks to ringcable only as a Rails app would: over real HTTP, with the
//! tokens it was given. It may not name anything else of this crate; ringcable only starts it and serves its [`FILES`].
//! Called by `server` when the configuration says `demo`.
//!
//! Follow a message: `http` → `app` → `channels` → `chat` (the state) → `broadcaster` → ringcable's `/_broadcast`.

mod app;
mod broadcaster;
mod channels;
mod chat;
mod client_json;
mod http;
mod page;
mod rpc;
mod user;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

pub use page::{FILES, File};

use app::App;
use broadcaster::Broadcaster;

/// Path under which the app answers `connect`, `command` and `disconnect`, as Campfire mounts it.
const RPC_MOUNT_PATH: &str = "/_anycable";

/// The tokens that ringcable and the app share.
#[derive(Debug, Clone, Default)]
pub struct DemoOptions {
    /// The `Bearer` token that RPC calls must carry; `None` = calls are not checked.
    pub rpc_token: Option<String>,
    /// The `Bearer` token that the app sends with its broadcasts; `None` = none is sent.
    pub broadcast_token: Option<String>,
}

/// The running app. Its threads live as long as the process: at shutdown ringcable still makes disconnect calls.
#[derive(Debug)]
pub struct DemoApp {
    address: SocketAddr,
    broadcaster: Broadcaster,
}

impl DemoApp {
    /// Binds a free port on 127.0.0.1 and starts the app's threads.
    ///
    /// # Errors
    /// What the system says when the socket cannot be bound or a thread cannot be started.
    pub fn start(options: DemoOptions) -> io::Result<DemoApp> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let broadcaster = Broadcaster::start(options.broadcast_token)?;
        let app = Arc::new(App::new(
            options.rpc_token,
            RPC_MOUNT_PATH,
            broadcaster.clone(),
        ));
        http::serve(listener, move |request| app.answer(request))?;
        Ok(DemoApp {
            address,
            broadcaster,
        })
    }

    /// The value for `--rpc_host`.
    pub fn rpc_url(&self) -> String {
        format!("http://{}{RPC_MOUNT_PATH}", self.address)
    }

    /// Sets where broadcasts go, for example `http://127.0.0.1:8080/_broadcast`. Broadcasts made earlier wait for this call.
    ///
    /// # Panics
    /// When `url` does not start with `http://`. The caller makes the URL, so this is a bug of the caller.
    pub fn set_broadcast_url(&self, url: &str) {
        self.broadcaster.set_url(url);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    /// One request on a connection of its own; returns the status line and the body.
    fn post(url: &str, call: &str, body: &str) -> (String, String) {
        let address = url.trim_start_matches("http://").split('/').next().unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        write!(
            stream,
            "POST {RPC_MOUNT_PATH}/{call} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer rpc\r\n\
             X-Anycable-Meta-Sid: s1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    /// Takes one broadcast and answers it as ringcable does.
    fn take_broadcast(listener: &TcpListener) -> (String, serde_json::Value) {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let read = stream.read(&mut chunk).unwrap();
            bytes.extend_from_slice(&chunk[..read]);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && let Ok(value) = serde_json::from_str(body)
            {
                stream
                    .write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
                    .unwrap();
                return (head.to_owned(), value);
            }
            assert!(read > 0, "broadcast ended early: {text}");
        }
    }

    #[test]
    fn what_one_user_says_is_posted_as_a_broadcast() {
        let ringcable = TcpListener::bind("127.0.0.1:0").unwrap();
        let app = DemoApp::start(DemoOptions {
            rpc_token: Some("rpc".to_owned()),
            broadcast_token: Some("broadcast".to_owned()),
        })
        .unwrap();

        let env = r#"{"url":"http://localhost:8080/cable?name=Ann","headers":{"REMOTE_ADDR":"127.0.0.1"}}"#;
        let (status, body) = post(&app.rpc_url(), "connect", &format!(r#"{{"env":{env}}}"#));
        assert_eq!(status, "HTTP/1.1 200 OK");
        let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            answer["transmissions"][0],
            r#"{"type":"welcome","sid":"s1"}"#
        );
        let identifiers = serde_json::to_string(answer["identifiers"].as_str().unwrap()).unwrap();

        let (_, body) = post(
            &app.rpc_url(),
            "command",
            &format!(
                r#"{{"command":"message","identifier":"{{\"channel\":\"RoomChannel\",\"room_id\":1}}","connection_identifiers":{identifiers},"data":"{{\"action\":\"speak\",\"body\":\"hello\",\"client_id\":\"c1\"}}","env":{env}}}"#
            ),
        );
        assert!(body.starts_with(r#"{"status":1"#), "{body}");

        // The address comes late on purpose: publications made earlier must wait and not be lost.
        app.set_broadcast_url(&format!(
            "http://{}/_broadcast",
            ringcable.local_addr().unwrap()
        ));
        let (head, publication) = take_broadcast(&ringcable);
        assert!(head.starts_with("POST /_broadcast HTTP/1.1\r\n"), "{head}");
        assert!(
            head.contains("\r\nAuthorization: Bearer broadcast\r\n"),
            "{head}"
        );
        let message: serde_json::Value =
            serde_json::from_str(publication["data"].as_str().unwrap()).unwrap();
        assert_eq!(message["message"]["body"], "hello");
        assert_eq!(message["message"]["client_id"], "c1");
        let (_, publication) = take_broadcast(&ringcable);
        assert_eq!(publication["stream"], "unread_rooms");
    }

    #[test]
    fn a_call_without_the_token_is_401() {
        let app = DemoApp::start(DemoOptions {
            rpc_token: Some("other".to_owned()),
            ..DemoOptions::default()
        })
        .unwrap();
        assert_eq!(
            post(&app.rpc_url(), "connect", "{}").0,
            "HTTP/1.1 401 Unauthorized"
        );
    }
}
