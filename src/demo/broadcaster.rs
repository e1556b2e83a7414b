//! Sends the app's publications to ringcable as the Ruby gem does: one thread, one publication after another, a new
//! connection and a `POST` for each; any answer but 201 is an error.
//!
//! Owns the queue between the app and that thread. Called by `app` (to broadcast) and by `mod` (to set the URL).
//! Source: `contract/broadcast.md` §3 and §8.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::chat::Publication;
use super::rpc::json;
use crate::log::Sparse;

/// Publications that may wait for the sending thread. Beyond this number the call that broadcasts fails.
const QUEUE_PUBLICATIONS_MAX: usize = 4096;
const IO_TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses before the second, third and fourth attempt.
const RETRY_PAUSES: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_secs(1),
];
const STACK_BYTES: usize = 256 * 1024;
/// Largest part of an answer that is read.
const ANSWER_BYTES_MAX: usize = 4096;

/// The app's side of the queue.
#[derive(Debug, Clone)]
pub struct Broadcaster {
    queue: SyncSender<Publication>,
    target: Arc<Target>,
}

/// The URL to post to. The thread waits here until the URL is known.
#[derive(Debug, Default)]
struct Target(OnceLock<Endpoint>);

#[derive(Debug)]
struct Endpoint {
    /// `host:port`.
    authority: String,
    path: String,
}

impl Broadcaster {
    /// Starts the sending thread. `token` goes out as `Authorization: Bearer`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(token: Option<String>) -> io::Result<Broadcaster> {
        let (queue, publications) = sync_channel(QUEUE_PUBLICATIONS_MAX);
        let target = Arc::new(Target::default());
        let sender = Arc::clone(&target);
        thread::Builder::new()
            .name("demo-broadcast".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || send_all(&publications, &sender, token.as_deref()))?;
        Ok(Broadcaster { queue, target })
    }

    /// Sets the URL. Only the first call has an effect.
    ///
    /// # Panics
    /// When `url` does not start with `http://`.
    pub fn set_url(&self, url: &str) {
        let rest = url
            .strip_prefix("http://")
            .expect("the broadcast URL is made by this program and plain http");
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        self.target.0.get_or_init(|| Endpoint {
            authority: authority.to_owned(),
            path: format!("/{path}"),
        });
    }

    /// Queues `publication`; publications of one caller keep their order.
    ///
    /// # Errors
    /// A sentence for the RPC answer, when the queue is full.
    pub fn broadcast(&self, publication: Publication) -> Result<(), String> {
        self.queue.try_send(publication).map_err(|_| {
            format!("more than {QUEUE_PUBLICATIONS_MAX} broadcasts are waiting to be sent")
        })
    }
}

fn send_all(publications: &Receiver<Publication>, target: &Target, token: Option<&str>) {
    let mut failures = Sparse::default();
    for publication in publications {
        let endpoint = target.0.wait();
        if let Err(error) = send_with_retries(endpoint, token, &json(&publication))
            && let Some(admitted) = failures.admit(Instant::now())
        {
            let (stream, left_out) = (publication.stream, admitted.left_out());
            tracing::warn!(%error, stream, left_out, "the demo app could not broadcast");
        }
    }
}

/// Repeats an attempt that failed on the network. An answer is final, whatever its status.
fn send_with_retries(
    endpoint: &Endpoint,
    token: Option<&str>,
    body: &str,
) -> Result<(), SendError> {
    for pause in RETRY_PAUSES {
        match send(endpoint, token, body) {
            Err(SendError::Network(_)) => thread::sleep(pause),
            done => return done,
        }
    }
    send(endpoint, token, body)
}

fn send(endpoint: &Endpoint, token: Option<&str>, body: &str) -> Result<(), SendError> {
    let Endpoint { authority, path } = endpoint;
    let mut stream = TcpStream::connect(authority)?;
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    stream.set_write_timeout(Some(IO_TIMEOUT))?;
    let authorization = token
        .map(|token| format!("Authorization: Bearer {token}\r\n"))
        .unwrap_or_default();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\n{authorization}Connection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    match read_status(&mut stream)? {
        201 => Ok(()),
        status => Err(SendError::Refused(status)),
    }
}

fn read_status(stream: &mut TcpStream) -> Result<u16, SendError> {
    let mut answer = [0; ANSWER_BYTES_MAX];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut answer[filled..])?;
        filled += read;
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Response::new(&mut headers);
        match (head.parse(&answer[..filled]), head.code) {
            (Ok(httparse::Status::Complete(_)), Some(status)) => return Ok(status),
            (Ok(httparse::Status::Partial), _) if read > 0 => {}
            _ => return Err(SendError::NotHttp { bytes: filled }),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("no connection to the server: {0}")]
    Network(#[from] io::Error),
    #[error("expected status 201, got {0}")]
    Refused(u16),
    #[error("expected an HTTP answer, got {bytes} bytes of something else")]
    NotHttp { bytes: usize },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Plays ringcable for one broadcast: sends `answer` back and checks the result of `send`.
    fn check(answer: &'static str, expected: Result<(), &str>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"{}") {
                let mut chunk = [0; 1024];
                let read = stream.read(&mut chunk).unwrap();
                request.extend_from_slice(&chunk[..read]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let result = send(
            &Endpoint {
                authority,
                path: "/_broadcast".to_owned(),
            },
            None,
            "{}",
        );
        assert_eq!(
            result.map_err(|error| error.to_string()),
            expected.map_err(str::to_owned)
        );
        server.join().unwrap();
    }

    #[test]
    fn only_201_is_success() {
        check("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", Ok(()));
        check(
            "HTTP/1.1 200 OK\r\n\r\n",
            Err("expected status 201, got 200"),
        );
        check(
            "HTTP/1.1 401 Unauthorized\r\n\r\n",
            Err("expected status 201, got 401"),
        );
        check(
            "HTTP/1.1 20",
            Err("expected an HTTP answer, got 11 bytes of something else"),
        );
        check(
            "nope\r\n\r\n",
            Err("expected an HTTP answer, got 8 bytes of something else"),
        );
    }

    #[test]
    fn a_full_queue_is_said_to_the_caller() {
        // No URL is set, so the thread takes one publication from the queue and waits with it.
        let broadcaster = Broadcaster::start(None).unwrap();
        let publication = || Publication::new("s".to_owned(), &1);
        let refused = (0..QUEUE_PUBLICATIONS_MAX + 2)
            .find_map(|_| broadcaster.broadcast(publication()).err());
        assert_eq!(
            refused.as_deref(),
            Some("more than 4096 broadcasts are waiting to be sent")
        );
    }
}
