//! A small blocking HTTP/1.1 server, as Puma is for Rails. One thread per connection, keep-alive, every size limited.
//!
//! Contains nothing about chat or RPC. `mod` calls it with the function that answers a request.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::log::Sparse;

/// Connections served at once. ringcable keeps at most its `--rpc_concurrency` (28) open, so this is ample.
const CONNECTIONS_MAX: usize = 256;
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
const BODY_BYTES_MAX: usize = 512 * 1024;
const STACK_BYTES: usize = 256 * 1024;
/// An idle connection is closed after this time, as Puma does.
const IDLE_TIMEOUT: Duration = Duration::from_secs(65);

/// A whole request.
#[derive(Debug)]
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// Value of `Authorization`, if any.
    pub authorization: Option<&'a str>,
    /// Value of `X-Anycable-Meta-Sid`, if any.
    pub sid: Option<&'a str>,
    pub body: &'a [u8],
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status code and reason, for example `200 OK`.
    pub status: &'static str,
    pub body: String,
}

/// Starts accepting on `listener`; `answer` runs on the connection's thread.
///
/// # Errors
/// When the accepting thread cannot be started.
pub fn serve<A>(listener: TcpListener, answer: A) -> io::Result<()>
where
    A: Fn(&Request) -> Response + Send + Sync + 'static,
{
    let answer = Arc::new(answer);
    let open = Arc::new(AtomicUsize::new(0));
    thread::Builder::new()
        .name("demo-accept".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let mut refusals = Sparse::default();
            for stream in listener.incoming() {
                let result = stream.and_then(|stream| start_connection(stream, &answer, &open));
                if let Err(error) = result
                    && let Some(admitted) = refusals.admit(Instant::now())
                {
                    let left_out = admitted.left_out();
                    tracing::warn!(%error, left_out, "the demo app could not serve a connection");
                }
            }
        })?;
    Ok(())
}

/// # Errors
/// Too many connections are open, or no thread can be started. The connection is closed.
fn start_connection<A>(
    stream: TcpStream,
    answer: &Arc<A>,
    open: &Arc<AtomicUsize>,
) -> io::Result<()>
where
    A: Fn(&Request) -> Response + Send + Sync + 'static,
{
    // Only the accepting thread increments the count, so there is no race. Dropping the refused stream closes it.
    if open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
        return Err(io::Error::other(format!("{CONNECTIONS_MAX} are open")));
    }
    open.fetch_add(1, Ordering::Relaxed);
    let slot = Slot(Arc::clone(open));
    let answer = Arc::clone(answer);
    thread::Builder::new()
        .name("demo-connection".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let _slot = slot;
            if let Err(error) = serve_connection(stream, answer.as_ref()) {
                tracing::debug!(%error, "a connection to the demo app ended");
            }
        })?;
    Ok(())
}

/// Counts one open connection until it is dropped.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers requests one after another until the peer closes, asks to close, or sends something that is not HTTP.
fn serve_connection(
    mut stream: TcpStream,
    answer: impl Fn(&Request) -> Response,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    let mut input = Vec::new();
    loop {
        let (response, used, keep) = match parse(&input) {
            Parsed::Partial => {
                let mut chunk = [0; 8 * 1024];
                match stream.read(&mut chunk)? {
                    0 => return Ok(()),
                    read => input.extend_from_slice(&chunk[..read]),
                }
                continue;
            }
            Parsed::Bad(status) => (
                Response {
                    status,
                    body: String::new(),
                },
                input.len(),
                false,
            ),
            Parsed::Request {
                request,
                used,
                keep,
            } => (answer(&request), used, keep),
        };
        input.drain(..used);
        write_response(&mut stream, &response, keep)?;
        if !keep {
            return Ok(());
        }
    }
}

fn write_response(stream: &mut TcpStream, response: &Response, keep: bool) -> io::Result<()> {
    let Response { status, body } = response;
    let connection = if keep { "" } else { "Connection: close\r\n" };
    let length = body.len();
    // One write, so that the answer goes out as one segment.
    stream.write_all(
        format!("HTTP/1.1 {status}\r\n{connection}Content-Length: {length}\r\n\r\n{body}")
            .as_bytes(),
    )
}

enum Parsed<'a> {
    Partial,
    /// The request is not accepted; this is the status, and the connection closes.
    Bad(&'static str),
    Request {
        request: Request<'a>,
        /// Bytes of the input that belong to this request.
        used: usize,
        keep: bool,
    },
}

fn parse(input: &[u8]) -> Parsed<'_> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let body_at = match head.parse(input) {
        Ok(httparse::Status::Complete(at)) => at,
        Ok(httparse::Status::Partial) if input.len() < HEAD_BYTES_MAX => return Parsed::Partial,
        Ok(httparse::Status::Partial) => return Parsed::Bad("431 Request Header Fields Too Large"),
        Err(_) => return Parsed::Bad("400 Bad Request"),
    };
    let header = |name: &str| {
        let header = head
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok()
    };
    if header("Transfer-Encoding").is_some() {
        return Parsed::Bad("411 Length Required");
    }
    let body_bytes = match header("Content-Length").unwrap_or("0").parse::<usize>() {
        Ok(bytes) if bytes <= BODY_BYTES_MAX => bytes,
        Ok(_) => return Parsed::Bad("413 Content Too Large"),
        Err(_) => return Parsed::Bad("400 Bad Request"),
    };
    let Some(body) = input.get(body_at..body_at + body_bytes) else {
        return Parsed::Partial;
    };
    let close = header("Connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    Parsed::Request {
        keep: head.version == Some(1) && !close,
        used: body_at + body_bytes,
        request: Request {
            authorization: header("Authorization"),
            sid: header("X-Anycable-Meta-Sid"),
            method: head.method.unwrap_or_default(),
            path: head.path.unwrap_or_default(),
            body,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sends `input` to a server that echoes method, path and body, and returns everything that comes back.
    fn check(input: &str, expected: &str) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        serve(listener, |request| Response {
            status: "200 OK",
            body: format!(
                "{} {} {}",
                request.method,
                request.path,
                String::from_utf8_lossy(request.body)
            ),
        })
        .unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(input.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut output = String::new();
        stream.read_to_string(&mut output).unwrap();
        assert_eq!(output, expected, "{input:?}");
    }

    #[test]
    fn requests_on_one_connection_are_answered_in_order() {
        check(
            "POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nxyPOST /b HTTP/1.1\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nPOST /a xyHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nPOST /b ",
        );
    }

    #[test]
    fn a_request_that_asks_to_close_is_the_last() {
        let expected = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 7\r\n\r\nGET /a ";
        check(
            "GET /a HTTP/1.1\r\nConnection: close\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
            expected,
        );
        check("GET /a HTTP/1.0\r\n\r\n", expected);
    }

    #[test]
    fn what_is_not_taken_is_refused_with_a_reason() {
        let refused = |status: &str| {
            format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        };
        check("nonsense\r\n\r\n", &refused("400 Bad Request"));
        check(
            "POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            &refused("400 Bad Request"),
        );
        check(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            &refused("411 Length Required"),
        );
        check(
            "POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
            &refused("413 Content Too Large"),
        );
        check("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab", "");
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(input in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = parse(&input);
        }

        #[test]
        fn a_request_is_partial_until_its_last_byte(cut in 0_usize..52) {
            let whole = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody";
            prop_assume!(cut < whole.len());
            prop_assert!(matches!(parse(&whole[..cut]), Parsed::Partial));
            let parsed_whole = matches!(parse(whole), Parsed::Request { used, .. } if used == whole.len());
            prop_assert!(parsed_whole);
        }
    }
}
