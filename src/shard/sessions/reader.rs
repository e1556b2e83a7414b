//! From sockets to messages: reading, decrypting, decoding, and what is kept of a client that has to wait.
//!
//! The reader never sends and never closes. It belongs to no session: between two turns all that it knows of one stands in
//! the connection.

use std::io;

use super::bounds::SMALL_BYTES;
use super::common::Common;
use super::connection::Connection;
use super::share::Share;
use super::table::Table;
use crate::wire::websocket::frame::FrameError;
use crate::wire::websocket::message::{Incoming, MessageDecoder, MessageLimits, Scratch};
use rustls::Error as TlsError;

/// Bytes read from a socket at once, into one buffer that all sessions of the shard share. Also the most that a session
/// keeps unread while a call is under way.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// Bytes of a session with TLS that are read at once: they may be nearly two hundred records.
const RECORDS_READ_BYTES: usize = 4 << 10;

/// With the process's memory used up, an unfinished message of this size is still no reason to end a session.
const UNFINISHED_BYTES_SMALL: usize = SMALL_BYTES / 16;

/// What one read of a socket has brought.
pub(super) enum Received {
    /// So many bytes of WebSocket frames, in [`Reader::buffer`].
    Plain(usize),
    /// So many bytes of TLS records, in [`Reader::buffer`].
    Records(usize),
    /// Nothing yet.
    Nothing,
    /// The client has closed its side, or the socket is broken.
    End,
}

#[derive(Default)]
pub(super) struct Reader {
    /// What comes from a socket.
    pub buffer: Vec<u8>,
    /// Decrypted input of one read, for sessions with TLS.
    pub plain: Vec<u8>,
    pub messages: Messages,
}

/// The decoding of one session's input, while it is taken up.
#[derive(Default)]
pub(super) struct Messages {
    /// The session's, taken out of its connection so that a message can be borrowed from it while it is handled.
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
    /// A read that does not fill the buffer has emptied the socket, and what comes later is a new event: the read that would
    /// only say "would block" is saved. Not so when the far end may have closed: its end comes behind the last byte and is
    /// no event of its own any more.
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
                // With TLS the end may also stand in the bytes.
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

    /// Decrypts what was received, into [`Self::plain`]; that holds what came before an error, too.
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
    /// Begins with what has come of an unfinished message. Its charge is released: it is about to change. Returns what the
    /// session may send.
    pub fn begin(&mut self, common: &Common, connection: &mut Connection) -> MessageLimits {
        self.decoder = std::mem::take(&mut connection.decoder);
        common.budget.release(self.decoder.held_bytes());
        MessageLimits {
            deflate: connection.format.deflate,
            ..common.message_limits
        }
    }

    /// Takes bytes from the start of `input` up to the first message or control frame. Returns how many, and what was found.
    ///
    /// # Errors
    /// A violation of the protocol. What is left of the input means nothing any more.
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

    /// Leaves what has come of an unfinished message with the session, if that has not gone, and charges it. False: there is
    /// no memory for it, and nothing of it is kept.
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
