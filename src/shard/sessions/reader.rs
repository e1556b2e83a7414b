//! From sockets to messages: reading, decrypting, decoding, and storing the input of a client that has to wait.
//!
//! The reader never sends and never closes. It belongs to no session: between two turns everything it knows about a session
//! is in the connection.

use std::io;

use super::bounds::SMALL_BYTES;
use super::common::Common;
use super::connection::Connection;
use super::formats::Encoding;
use super::share::Share;
use super::table::Table;
use crate::wire::websocket::frame::FrameError;
use crate::wire::websocket::message::{Incoming, MessageDecoder, MessageLimits, Scratch};
use rustls::Error as TlsError;

/// Bytes read from a socket at once, into one buffer that all sessions of the shard share. This is also the most that a
/// session keeps unread while a call is under way.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// Bytes read at once from a session with TLS: they may contain nearly two hundred records.
const RECORDS_READ_BYTES: usize = 4 << 10;

/// When the process has no memory left, an unfinished message of up to this size does not end its session.
const UNFINISHED_BYTES_SMALL: usize = SMALL_BYTES / 16;

/// The result of one read from a socket.
pub(super) enum Received {
    /// This many bytes of WebSocket frames, in [`Reader::buffer`].
    Plain(usize),
    /// This many bytes of TLS records, in [`Reader::buffer`].
    Records(usize),
    /// Nothing yet.
    Nothing,
    /// The client has closed its side, or the socket is broken.
    End,
}

#[derive(Default)]
pub(super) struct Reader {
    /// Bytes read from a socket.
    pub buffer: Vec<u8>,
    /// Decrypted input of one read, for sessions with TLS.
    pub plain: Vec<u8>,
    pub messages: Messages,
}

/// Decodes one session's input while it is processed.
#[derive(Default)]
pub(super) struct Messages {
    /// The session's decoder. It is taken out of the connection so that a message can borrow from it while it is handled.
    decoder: MessageDecoder,
    scratch: Scratch,
}

impl Reader {
    pub fn new() -> Self {
        Self {
            buffer: vec![0; READ_BUFFER_BYTES],
            ..Self::default()
        }
    }

    /// Reads from a session's socket once.
    ///
    /// A read that does not fill the buffer has emptied the socket, and later bytes cause a new event. So the read that
    /// would only return "would block" is saved. This does not hold when the client may have closed: the end of the stream
    /// comes after the last byte and causes no event of its own.
    pub fn receive(&mut self, connection: &mut Connection, share: &mut Share) -> Received {
        let encrypted = connection.tls.is_some();
        let room = if encrypted {
            RECORDS_READ_BYTES
        } else {
            self.buffer.len()
        };
        match connection.receive(&mut self.buffer[..room]) {
            Ok(0) => Received::End,
            Ok(bytes) => {
                // With TLS the end may also be in the bytes that were read.
                connection.input_waiting = bytes == room || connection.end_seen || encrypted;
                share.pay_read(bytes, encrypted);
                if encrypted {
                    Received::Records(bytes)
                } else {
                    Received::Plain(bytes)
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                connection.input_waiting = false;
                Received::Nothing
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Received::Nothing,
            Err(_) => Received::End,
        }
    }

    /// Decrypts what was received into [`Self::plain`]. After an error it contains what came before the error.
    ///
    /// # Errors
    /// A violation of TLS.
    pub fn decrypt(&mut self, connection: &mut Connection, bytes: usize) -> Result<(), TlsError> {
        match &mut connection.tls {
            Some(tls) => tls.decrypt(&mut self.buffer[..bytes], &mut self.plain),
            None => Ok(()),
        }
    }
}

impl Messages {
    /// Takes the decoder with the unfinished message of the session. Its charge is released, because its size is about to
    /// change. Returns the limits on the session's messages.
    pub fn begin(&mut self, common: &Common, connection: &mut Connection) -> MessageLimits {
        self.decoder = std::mem::take(&mut connection.decoder);
        common.budget.release(self.decoder.held_bytes());
        MessageLimits {
            deflate: connection.format.encoding == Encoding::DEFLATED,
            ..common.message_limits
        }
    }

    /// Takes bytes from the start of `input` up to the first message or control frame. Returns how many, and what was found.
    ///
    /// # Errors
    /// A violation of the protocol. The rest of the input can no longer be interpreted.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut [u8],
        limits: &MessageLimits,
    ) -> Result<(usize, Option<Incoming<'a>>), FrameError> {
        let found = self.decoder.next(input, limits, &mut self.scratch);
        if found.is_err() {
            self.decoder = MessageDecoder::default();
        }
        found
    }

    /// Gives the decoder with an unfinished message back to the session, if it still exists, and charges it. Returns false
    /// when there is no memory for the message, which is then dropped.
    pub fn end(&mut self, common: &Common, table: &mut Table, slot: u32) -> bool {
        self.scratch.clear();
        let decoder = std::mem::take(&mut self.decoder);
        let Some(connection) = table.connections.get_mut(slot as usize) else {
            return true;
        };
        let bytes = decoder.held_bytes();
        if bytes <= UNFINISHED_BYTES_SMALL {
            common.budget.charge(bytes);
        } else if !common.budget.try_charge(bytes) {
            return false;
        }
        connection.decoder = decoder;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;
    use std::rc::Rc;

    use super::*;
    use crate::shard::sessions::tests::parts::Parts;

    /// Reads until something comes. Returns the number of bytes, 0 for the end.
    fn receive(reader: &mut Reader, connection: &mut Connection) -> usize {
        loop {
            match reader.receive(connection, &mut Share::new()) {
                Received::Plain(bytes) => return bytes,
                Received::End => return 0,
                Received::Nothing => assert!(!connection.input_waiting),
                Received::Records(_) => unreachable!("no TLS"),
            }
        }
    }

    #[test]
    fn only_a_read_that_fills_the_buffer_leaves_input() {
        Parts::on_both(&[], |parts| {
            let (slot, mut client) = parts.connect();
            let mut reader = Reader::new();
            let connection = parts.connection(slot);
            client.write_all(b"frames").expect("write");
            assert_eq!(receive(&mut reader, connection), 6);
            assert_eq!(&reader.buffer[..6], b"frames");
            assert!(!connection.input_waiting);
            client
                .write_all(&vec![1; READ_BUFFER_BYTES + 1])
                .expect("write");
            let mut left = READ_BUFFER_BYTES + 1;
            while left > 0 {
                let bytes = receive(&mut reader, connection);
                assert_eq!(connection.input_waiting, bytes == READ_BUFFER_BYTES);
                left -= bytes;
            }
        });
    }

    #[test]
    fn a_connection_that_may_have_ended_is_read_to_its_end() {
        Parts::on_both(&[], |parts| {
            let (slot, mut client) = parts.connect();
            let mut reader = Reader::new();
            let connection = parts.connection(slot);
            client.write_all(b"last").expect("write");
            client.shutdown(Shutdown::Both).expect("shutdown");
            connection.end_seen = true;
            assert_eq!(receive(&mut reader, connection), 4);
            assert!(connection.input_waiting);
            assert_eq!(receive(&mut reader, connection), 0);
        });
    }

    /// A masked frame that says that it has 1,000 bytes, and some of them.
    fn beginning_of_a_message() -> Vec<u8> {
        [&[0x81, 0x80 | 126, 3, 232, 0, 0, 0, 0][..], &[b'x'; 500]].concat()
    }

    fn begin(messages: &mut Messages, parts: &mut Parts, slot: u32) -> MessageLimits {
        let common = Rc::clone(&parts.common);
        messages.begin(&common, parts.connection(slot))
    }

    #[test]
    fn an_unfinished_message_is_kept_and_charged_until_its_next_part_comes() {
        Parts::on_both(&[], |parts| {
            let (slot, _client) = parts.connect();
            let mut messages = Messages::default();
            let before = parts.common.budget.used_bytes();
            let limits = begin(&mut messages, parts, slot);
            let mut input = beginning_of_a_message();
            let (taken, found) = messages.next(&mut input, &limits).expect("a good start");
            assert!(taken == 508 && found.is_none());
            assert!(messages.end(&parts.common, &mut parts.table, slot));
            let held = parts.connection(slot).decoder.held_bytes();
            assert!(held >= 500);
            assert_eq!(parts.common.budget.used_bytes(), before + held);
            let limits = begin(&mut messages, parts, slot);
            assert_eq!(parts.common.budget.used_bytes(), before);
            let mut rest = [b'y'; 500];
            let (_, found) = messages.next(&mut rest, &limits).expect("a whole message");
            assert!(matches!(found, Some(Incoming::Text(text)) if text.len() == 1000));
            assert!(messages.end(&parts.common, &mut parts.table, slot));
            assert_eq!(parts.common.budget.used_bytes(), before);
        });
    }

    #[test]
    fn nothing_is_kept_of_a_message_after_an_error_or_the_end_of_its_session() {
        Parts::on_both(&[], |parts| {
            let (slot, _client) = parts.connect();
            let mut messages = Messages::default();
            let before = parts.common.budget.used_bytes();
            let limits = begin(&mut messages, parts, slot);
            let mut input = beginning_of_a_message();
            input.extend_from_slice(&[b'x'; 500]);
            input.extend_from_slice(b"not a masked frame");
            let (taken, _) = messages.next(&mut input, &limits).expect("a whole message");
            assert!(messages.next(&mut input[taken..], &limits).is_err());
            assert!(messages.end(&parts.common, &mut parts.table, slot));
            assert_eq!(parts.connection(slot).decoder.held_bytes(), 0);
            let limits = begin(&mut messages, parts, slot);
            messages
                .next(&mut beginning_of_a_message(), &limits)
                .expect("a good start");
            parts.table.remove(slot);
            let without = parts.common.budget.used_bytes();
            assert!(messages.end(&parts.common, &mut parts.table, slot));
            assert!(parts.common.budget.used_bytes() == without && without < before);
        });
    }
}
