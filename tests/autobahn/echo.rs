//! An echo server made of the server's WebSocket codec and nothing else: what Autobahn's test suite speaks to (`run`).
//!
//!   cargo run --example autobahn_echo -- ADDRESS [READ_BYTES]
//!
//! It negotiates as the server does, with permessage-deflate, and sends text back as text and binary as binary. With
//! READ_BYTES it reads no more than that at once. One thread for each connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;
use std::{env, thread};

use ringcable::wire::handshake::{encode_refusal, encode_switching_protocols, upgrade};
use ringcable::wire::http_head::{HeadLimits, HeadScanner};
use ringcable::wire::http_request::RequestHead;
use ringcable::wire::origins::AllowedOrigins;
use ringcable::wire::websocket::deflate::Deflater;
use ringcable::wire::websocket::frame::{self, Opcode};
use ringcable::wire::websocket::message::{Incoming, MessageDecoder, MessageLimits, Scratch};

const READ_BYTES: usize = 64 << 10;
/// The suite's longest message has 16 MiB.
const MESSAGE_BYTES_MAX: u64 = 32 << 20;
/// How long a client may keep its side open after the close.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

fn main() -> io::Result<()> {
    let mut words = env::args().skip(1);
    let address = words.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let read_bytes = words
        .next()
        .map_or(Ok(READ_BYTES), |word| word.parse())
        .map_err(io::Error::other)?;
    let listener = TcpListener::bind(address)?;
    println!("{}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || serve(stream, read_bytes));
    }
    Ok(())
}

/// One client, from its first byte to its end. A broken connection is the client's affair.
fn serve(mut stream: TcpStream, read_bytes: usize) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; read_bytes];
    let Some((deflate, mut unread)) = shake_hands(&mut stream, &mut buffer)? else {
        return Ok(());
    };
    let mut echo = Echo {
        decoder: MessageDecoder::default(),
        limits: MessageLimits {
            message_bytes_max: MESSAGE_BYTES_MAX,
            deflate,
            inflated_bytes_max: MESSAGE_BYTES_MAX,
        },
        deflater: Deflater::new(),
        scratch: Scratch::default(),
        out: Vec::new(),
    };
    loop {
        let open = echo.take(&mut unread);
        stream.write_all(&echo.out)?;
        echo.out.clear();
        if !open {
            return finish(&mut stream, &mut buffer);
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            bytes => unread = buffer[..bytes].to_vec(),
        }
    }
}

/// Reads the request and answers it. Whether messages may be compressed, and what came behind the head; `None` when the
/// request was refused.
fn shake_hands(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Option<(bool, Vec<u8>)>> {
    let limits = HeadLimits::default();
    let mut scanner = HeadScanner::default();
    let mut input = Vec::new();
    while scanner
        .find_end(&input, &limits)
        .map_err(io::Error::other)?
        .is_none()
    {
        match stream.read(buffer)? {
            0 => return Ok(None),
            bytes => input.extend_from_slice(&buffer[..bytes]),
        }
    }
    let head = RequestHead::decode(&input, &limits).map_err(io::Error::other)?;
    let (head, taken) = head.expect("the scanner has seen the end");
    let mut answer = Vec::new();
    let agreed = upgrade(&head, &AllowedOrigins::new(&[]), true);
    match &agreed {
        Ok(agreed) => encode_switching_protocols(agreed, &mut answer),
        Err(error) => encode_refusal(*error, DATE, false, &mut answer),
    }
    stream.write_all(&answer)?;
    Ok(agreed
        .ok()
        .map(|agreed| (agreed.deflate.is_some(), input.split_off(taken))))
}

struct Echo {
    decoder: MessageDecoder,
    limits: MessageLimits,
    deflater: Deflater,
    scratch: Scratch,
    /// What is to be sent.
    out: Vec<u8>,
}

impl Echo {
    /// Answers what has come. `false`: the connection is to be closed.
    fn take(&mut self, input: &mut [u8]) -> bool {
        let mut at = 0;
        while at < input.len() {
            let next = self
                .decoder
                .next(&mut input[at..], &self.limits, &mut self.scratch);
            let (taken, event) = match next {
                Ok(next) => next,
                Err(error) => {
                    let reason = error.close_reason();
                    let close = frame::close_frame(Some(error.close_code()), &reason);
                    self.out.extend_from_slice(&close);
                    return false;
                }
            };
            let (deflate, deflater) = (self.limits.deflate, &mut self.deflater);
            let (answer, open) = match event {
                None => (Vec::new(), true),
                Some(Incoming::Text(text)) => (data(Opcode::Text, text, deflate, deflater), true),
                Some(Incoming::Binary(bytes)) => {
                    (data(Opcode::Binary, bytes, deflate, deflater), true)
                }
                Some(Incoming::Ping(payload)) => (frame::pong_frame(payload), true),
                Some(Incoming::Pong(_)) => (Vec::new(), true),
                Some(Incoming::Close(code)) => (frame::close_frame(code, ""), false),
            };
            self.out.extend_from_slice(&answer);
            if !open {
                return false;
            }
            at += taken;
        }
        true
    }
}

fn data(opcode: Opcode, payload: &[u8], deflate: bool, deflater: &mut Deflater) -> Vec<u8> {
    if deflate {
        frame::frame(opcode, true, &deflater.compress(payload))
    } else {
        frame::frame(opcode, false, payload)
    }
}

/// Closes our side and waits for the client's, so that the close frame is not overtaken by a reset.
fn finish(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(CLOSE_PATIENCE))?;
    while stream.read(buffer)? > 0 {}
    Ok(())
}
