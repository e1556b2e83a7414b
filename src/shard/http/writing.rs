//! Sends answers to a client of the HTTP phase, and ends its connection after the last one.

use std::io;
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use crate::endpoints::Response;
use crate::shard::http::client::{Client, Next};
use crate::shard::http::reading::{HEAD_BUFFER_BYTES, ReadEnd};
use crate::shard::http::refusals;
use crate::wire::http_head::HttpError;
use crate::wire::http_request::RequestHead;
use crate::wire::http_response::{encode_head, encode_malformed_request};

/// Time for the client to receive a whole answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long, and for how many bytes, the server still reads from a client after its last answer.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 4 << 20;
/// Sent to a client that waits for it before it sends its body.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

impl Client {
    /// Answers a request without reading its body. The part that has arrived is discarded. If that is not the whole body,
    /// the answer closes the connection, because reading the rest would be of no use.
    pub(super) async fn answer(&mut self, head: &RequestHead, response: Response) -> Next {
        let response = if self.skip_arrived_body(head) {
            response
        } else {
            response.closing()
        };
        self.write(head, response).await
    }

    /// Writes the answer to a request whose body has been read.
    pub(super) async fn write(&mut self, head: &RequestHead, response: Response) -> Next {
        let keep = self.keeps_alive(head) && !response.close;
        let out = encode(Some(head), &response, keep, &date());
        self.send(out, keep).await
    }

    /// Writes the answer to a publication together with its deliveries on this shard. Requests that came after it in the
    /// same read do not wait for that. While earlier deliveries wait for a write, the answer does not wait for them: what
    /// the app publishes next is then written together with them.
    pub(super) async fn write_with_turn(&mut self, head: &RequestHead, response: Response) -> Next {
        let goes_along = self.input.is_empty() && !self.shard.has_deliveries_waiting();
        let socket = goes_along.then(|| self.socket.lend());
        let Some(socket) = socket.flatten() else {
            return self.write(head, response).await;
        };
        let keep = self.keeps_alive(head) && !response.close;
        let bytes = encode(Some(head), &response, keep, &date());
        let mut written = self.shard.send_answer(socket, bytes).await;
        self.socket.put_back(written.socket);
        let Ok(taken) = written.taken else {
            return Next::End;
        };
        written.bytes.drain(..taken);
        self.send(written.bytes, keep).await
    }

    pub(super) fn keeps_alive(&self, head: &RequestHead) -> bool {
        head.keep_alive() && !self.shard.shutdown.closes_connections()
    }

    /// Sends an answer. A client that does not receive it in time loses the connection.
    pub(super) async fn send(&mut self, bytes: Vec<u8>, keep: bool) -> Next {
        match self.write_in_time(&bytes).await {
            Some(Ok(())) => self.end_answer(keep).await,
            _ => Next::End,
        }
    }

    /// What follows an answer that the client has received.
    pub(super) async fn end_answer(&mut self, keep: bool) -> Next {
        match keep {
            true => Next::Keep,
            false => self.linger().await,
        }
    }

    pub(super) async fn write_in_time(&mut self, bytes: &[u8]) -> Option<io::Result<()>> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let write = pin!(self.socket.write_all(bytes));
        self.time.wait(&self.shard, None, deadline, write).await
    }

    /// Waits a moment for the client to close. Closing while the client still sends would reset the connection, and the
    /// reset can destroy the answer before the client reads it.
    async fn linger(&mut self) -> Next {
        let deadline = Instant::now() + LINGER_TIMEOUT;
        let finished = {
            let finish = pin!(self.socket.finish_writing());
            self.time.wait(&self.shard, None, deadline, finish).await
        };
        if finished.is_none() {
            return Next::End;
        }
        let mut discarded = self.input.len();
        while discarded < LINGER_BYTES_MAX {
            self.input.clear();
            if !matches!(
                self.read_some(deadline, HEAD_BUFFER_BYTES).await,
                ReadEnd::Bytes
            ) {
                break;
            }
            discarded += self.input.len();
        }
        Next::End
    }

    pub(super) async fn refuse_bytes(&mut self, error: &HttpError) -> Next {
        self.shard.counters().http_bad_requests_total.add(1);
        refusals::malformed(&self.shard, self.peer, error);
        let mut out = Vec::new();
        encode_malformed_request(error, &mut out);
        self.send(out, false).await
    }

    /// Answers a head for which there is no memory. Its method is unknown.
    pub(super) async fn refuse_head(&mut self) -> Next {
        self.input = Vec::new();
        let response = self.no_memory();
        let out = encode(None, &response, false, &date());
        self.send(out, false).await
    }

    /// Sends `100 Continue` to a client that expects it. Returns false when the client did not receive it.
    pub(super) async fn say_continue(&mut self, head: &RequestHead) -> bool {
        !head.expects_continue() || matches!(self.write_in_time(CONTINUE).await, Some(Ok(())))
    }
}

/// The bytes of an answer to the request `head`; `None` when there is no parsed request.
fn encode(head: Option<&RequestHead>, response: &Response, keep: bool, date: &str) -> Vec<u8> {
    let version_minor = head.map_or(1, RequestHead::version_minor);
    let body_bytes = response.body.len();
    let mut out = encode_answer_head(version_minor, response, body_bytes, keep, date);
    if head.is_none_or(|head| head.method() != "HEAD") {
        out.extend_from_slice(&response.body);
    }
    out
}

/// The head of an answer whose body has `body_bytes`. `version_minor` is that of the request.
pub(super) fn encode_answer_head(
    version_minor: u8,
    response: &Response,
    body_bytes: usize,
    keep: bool,
    date: &str,
) -> Vec<u8> {
    let mut headers: Vec<(&str, &str)> = response
        .headers
        .iter()
        .map(|(name, value)| (*name, &**value))
        .collect();
    // HTTP/1.0 clients assume that the connection closes unless they are told otherwise.
    if keep && version_minor == 0 {
        headers.push(("Connection", "keep-alive"));
    }
    let mut out = Vec::with_capacity(256 + response.body.len());
    encode_head(response.status, &headers, body_bytes, date, keep, &mut out);
    out
}

/// The current time in HTTP's format.
pub(super) fn date() -> String {
    httpdate::fmt_http_date(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::http_head::HeadLimits;

    fn encoded(request_line: &str, response: &Response, keep: bool) -> String {
        let text = format!("{request_line}\r\nHost: a\r\n\r\n");
        let (head, _) = RequestHead::decode(text.as_bytes(), &HeadLimits::default())
            .expect("a good head")
            .expect("a whole head");
        String::from_utf8(encode(Some(&head), response, keep, "now")).expect("UTF-8")
    }

    #[test]
    fn an_answer_says_whether_the_connection_goes_on() {
        let check = |request_line: &str, keep: bool, connection: &str| {
            assert_eq!(
                encoded(request_line, &Response::text(200, "ok"), keep),
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n{connection}\r\n\r\nok"
                ),
                "{request_line} {keep}"
            );
        };
        let length = "Date: now\r\nContent-Length: 2";
        let closes = format!("{length}\r\nConnection: close");
        check("GET / HTTP/1.1", true, length);
        check("GET / HTTP/1.1", false, &closes);
        let stays = format!("Connection: keep-alive\r\n{length}");
        check("GET / HTTP/1.0", true, &stays);
        check("GET / HTTP/1.0", false, &closes);
    }

    #[test]
    fn an_answer_to_head_has_the_length_of_a_body_and_no_body() {
        let answer = encoded("HEAD / HTTP/1.1", &Response::text(200, "ok"), true);
        assert!(answer.ends_with("Content-Length: 2\r\n\r\n"), "{answer}");
    }

    #[test]
    fn who_has_not_been_understood_gets_a_whole_answer() {
        let answer = encode(None, &Response::no_memory(), false, "now");
        let answer = String::from_utf8(answer).expect("UTF-8");
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(
            answer.ends_with("Connection: close\r\n\r\nno memory for this request, try again\n"),
            "{answer}"
        );
    }
}
