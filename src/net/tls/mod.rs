//! TLS for clients: the certificate, one client's TLS state, and how a socket of the HTTP phase moves its records.
//!
//! rustls does no I/O: [`TlsSession`] turns ciphertext into bytes and back, and the owner of the socket reads and writes the
//! records. In the HTTP phase that is [`super::Socket`], afterwards the session table, which takes the TLS state over.

mod certificate;
mod suites;
mod validity;

use std::sync::Arc;

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, WriteTraffic};
use rustls::{InvalidMessage, ServerConfig};

pub use self::certificate::{ServerTls, TlsFileError};
pub use self::validity::{Standing, Validity};

/// Largest part of an incomplete handshake message that is kept; a record is smaller. Source: rustls's own limit.
const UNFINISHED_BYTES_MAX: usize = 64 << 10;

/// Answer to a client that speaks plain HTTP to a TLS port. Source: contract/websocket.md §1.
pub const PLAIN_HTTP_ANSWER: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
/// First bytes that are needed to tell an HTTP request from a TLS record.
pub const OPENING_BYTES: usize = 5;

/// TLS state of one client. It holds no buffer while nothing happens: input is decrypted in the buffer it was read into, and
/// only an incomplete record is kept. After each call, [`Self::take_output`] must be sent before anything newer.
pub struct TlsSession {
    connection: UnbufferedServerConnection,
    /// The beginning of a record or of a handshake message.
    unfinished: Vec<u8>,
    /// Records that TLS itself has to send.
    output: Vec<u8>,
    peer_closed: bool,
    /// True after an error or our close_notify: nothing more can be sent or decrypted.
    over: bool,
}

impl TlsSession {
    /// # Errors
    /// A configuration that rustls refuses.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(config)?,
            unfinished: Vec::new(),
            output: Vec::new(),
            peer_closed: false,
            over: false,
        })
    }

    /// Takes bytes from the socket and appends what they contain to `plain`, also when it fails. `records` is empty
    /// afterwards.
    ///
    /// # Errors
    /// Bytes that are not TLS or were changed on the way; the output has an alert for the client then. Later bytes are
    /// ignored.
    pub fn decrypt(
        &mut self,
        records: &mut [u8],
        plain: &mut Vec<u8>,
    ) -> Result<(), rustls::Error> {
        if self.over {
            return Ok(());
        }
        let mut joined = std::mem::take(&mut self.unfinished);
        let input = if joined.is_empty() {
            records
        } else {
            joined.extend_from_slice(records);
            &mut joined
        };
        let used = self.process(input, plain)?;
        let rest = &input[used..];
        if rest.len() > UNFINISHED_BYTES_MAX {
            self.over = true;
            return Err(InvalidMessage::HandshakePayloadTooLarge.into());
        }
        if !self.peer_closed {
            self.unfinished = rest.to_vec();
        }
        Ok(())
    }

    /// Processes `input` and returns how many bytes of it are used up.
    fn process(&mut self, input: &mut [u8], plain: &mut Vec<u8>) -> Result<usize, rustls::Error> {
        let mut used = 0;
        loop {
            let status = self.connection.process_tls_records(&mut input[used..]);
            let mut discard = status.discard;
            match status.state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut self.output),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.peer_closed = true,
                Ok(_) => return Ok(used + discard),
                Err(error) => {
                    self.over = true;
                    self.encode_alert(&mut input[used + discard..]);
                    return Err(error);
                }
            }
            used += discard;
        }
    }

    /// After an error: makes the alert that tells the client the reason.
    fn encode_alert(&mut self, rest: &mut [u8]) {
        let status = self.connection.process_tls_records(rest);
        if let Ok(ConnectionState::EncodeTlsData(data)) = status.state {
            encode(data, &mut self.output);
        }
    }

    /// Appends the records that carry `plain` to `records`, after the waiting output. The handshake must be complete.
    pub fn encrypt(&mut self, plain: &[u8], records: &mut Vec<u8>) {
        self.write(records, |traffic, room| traffic.encrypt(plain, room));
    }

    /// Appends close_notify, the last record.
    pub fn close(&mut self, records: &mut Vec<u8>) {
        self.write(records, |traffic, room| traffic.queue_close_notify(room));
        self.over = true;
    }

    fn write(
        &mut self,
        records: &mut Vec<u8>,
        mut encrypt: impl FnMut(
            &mut WriteTraffic<'_, ServerConnectionData>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) {
        self.take_output(records);
        while !self.over {
            let status = self.connection.process_tls_records(&mut self.unfinished);
            match status.state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    append(records, |room| match encrypt(&mut traffic, room) {
                        Ok(bytes) => Ok(bytes),
                        Err(EncryptError::InsufficientSize(size)) => Err(size.required_size),
                        // The key has reached its limit: the connection cannot send more.
                        Err(EncryptError::EncryptExhausted) => Ok(0),
                    });
                    return;
                }
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, records),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.peer_closed = true,
                // The handshake is not complete, or the connection is over.
                _ => return,
            }
        }
    }

    /// Appends the records that TLS itself has to send.
    pub fn take_output(&mut self, records: &mut Vec<u8>) {
        records.append(&mut self.output);
        self.output = Vec::new();
    }

    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// The client has announced the end of its data.
    pub fn peer_has_closed(&self) -> bool {
        self.peer_closed
    }
}

fn encode(mut data: EncodeTlsData<'_, ServerConnectionData>, records: &mut Vec<u8>) {
    append(records, |room| match data.encode(room) {
        Ok(bytes) => Ok(bytes),
        Err(EncodeError::InsufficientSize(size)) => Err(size.required_size),
        Err(EncodeError::AlreadyEncoded) => Ok(0),
    });
}

/// Appends what `write` produces. `write` is called twice: its `Err` is the room that it needs.
fn append(records: &mut Vec<u8>, mut write: impl FnMut(&mut [u8]) -> Result<usize, usize>) {
    let start = records.len();
    let mut needed = 0;
    // rustls returns the exact size, so the second call succeeds.
    for _ in 0..2 {
        records.resize(start + needed, 0);
        match write(&mut records[start..]) {
            Ok(bytes) => return records.truncate(start + bytes),
            Err(bytes) => needed = bytes,
        }
    }
    records.truncate(start);
}

/// True for the first bytes of an HTTP request, which a browser sends for `http://` to a TLS port.
pub fn is_plain_http(opening: &[u8]) -> bool {
    const METHODS: [&[u8; OPENING_BYTES]; 7] = [
        b"GET /", b"HEAD ", b"POST ", b"PUT /", b"OPTIO", b"PATCH", b"DELET",
    ];
    METHODS.iter().any(|method| *method == opening)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use proptest::prelude::*;
    use rustls::crypto::ring;
    use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn server_and_client() -> (TlsSession, ClientConnection) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a key");
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(ring::default_provider());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .expect("a pair");
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("a certificate");
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").expect("a name");
        (
            TlsSession::new(Arc::new(server)).expect("a session"),
            ClientConnection::new(Arc::new(client), name).expect("a client"),
        )
    }

    fn sent(client: &mut ClientConnection) -> Vec<u8> {
        let mut records = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut records).expect("a vector");
        }
        records
    }

    fn receive(client: &mut ClientConnection, mut records: &[u8]) {
        while !records.is_empty() {
            client.read_tls(&mut records).expect("room");
            client.process_new_packets().expect("valid records");
        }
    }

    /// Feeds `records` in pieces and returns what they contain.
    fn feed(server: &mut TlsSession, records: &[u8], piece: usize) -> Vec<u8> {
        let mut plain = Vec::new();
        for part in records.chunks(piece) {
            server
                .decrypt(&mut part.to_vec(), &mut plain)
                .expect("valid records");
        }
        plain
    }

    fn shake_hands(piece: usize) -> (TlsSession, ClientConnection) {
        let (mut server, mut client) = server_and_client();
        while client.is_handshaking() {
            let records = sent(&mut client);
            assert!(feed(&mut server, &records, piece).is_empty());
            let mut answer = Vec::new();
            server.take_output(&mut answer);
            receive(&mut client, &answer);
        }
        let records = sent(&mut client);
        feed(&mut server, &records, piece);
        let mut answer = Vec::new();
        server.take_output(&mut answer);
        receive(&mut client, &answer);
        (server, client)
    }

    #[test]
    fn pieces_of_any_size_say_the_same_and_nothing_is_kept() {
        for piece in [1, 2, 3, 5, 7, 64, 1000, 70_000] {
            let (mut server, mut client) = shake_hands(piece);
            let text = vec![b'x'; 40_000];
            client.set_buffer_limit(None);
            client.writer().write_all(&text).expect("no limit");
            let records = sent(&mut client);
            assert!(
                feed(&mut server, &records, piece) == text,
                "pieces of {piece}"
            );
            assert_eq!(
                server.unfinished.capacity() + server.output.capacity(),
                0,
                "pieces of {piece}"
            );
        }
    }

    #[test]
    fn what_is_encrypted_arrives_and_close_notify_ends_it() {
        let (mut server, mut client) = shake_hands(1000);
        let mut records = Vec::new();
        server.encrypt(b"one", &mut records);
        server.encrypt(&[b'y'; 20_000], &mut records);
        server.close(&mut records);
        let after_close = records.len();
        server.encrypt(b"never", &mut records);
        assert_eq!(records.len(), after_close);
        let (mut read, mut records) = (Vec::new(), &records[..]);
        while !records.is_empty() {
            client.read_tls(&mut records).expect("room");
            client.process_new_packets().expect("valid records");
            let _would_block = client.reader().read_to_end(&mut read);
        }
        assert_eq!((read.len(), &read[..4]), (20_003, &b"oney"[..]));
        assert!(matches!(client.reader().read(&mut [0]), Ok(0)));
    }

    #[test]
    fn close_notify_of_the_client_is_noticed_behind_its_data() {
        let (mut server, mut client) = shake_hands(1000);
        client.writer().write_all(b"last").expect("room");
        client.send_close_notify();
        let records = sent(&mut client);
        assert_eq!(feed(&mut server, &records, 1000), b"last");
        assert!(server.peer_has_closed());
    }

    #[test]
    fn handshake_message_without_end_is_refused() {
        let (mut server, _) = server_and_client();
        // A ClientHello of 16 MB in records of 16 KB.
        let mut record = vec![0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
        record.resize(5 + 0x4000, 0);
        let mut follower = vec![0x16, 3, 1, 0x40, 0];
        follower.resize(5 + 0x4000, 0);
        let mut result = server.decrypt(&mut record, &mut Vec::new());
        for _ in 0..8 {
            if result.is_err() {
                break;
            }
            result = server.decrypt(&mut follower.clone(), &mut Vec::new());
        }
        assert!(result.is_err());
        assert_eq!(server.unfinished.len(), 0);
    }

    #[test]
    fn openings_tell_http_from_tls() {
        fn check(opening: &[u8], expected: bool) {
            assert_eq!(is_plain_http(opening), expected, "{opening:?}");
        }
        check(b"GET /", true);
        check(b"OPTIO", true);
        check(b"GET ", false);
        check(b"", false);
        check(b"\x16\x03\x01\x02\x00", false);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn garbage_is_an_error_and_never_a_panic(
            established in any::<bool>(),
            head in prop::sample::select(vec![vec![], vec![0x16, 3, 1], vec![0x17, 3, 3, 0, 20], vec![0x15, 3, 3, 0, 2]]),
            garbage in prop::collection::vec(any::<u8>(), 0..400),
            piece in 1_usize..100,
        ) {
            let mut server = if established { shake_hands(1000).0 } else { server_and_client().0 };
            let bytes = [head, garbage].concat();
            let mut plain = Vec::new();
            for part in bytes.chunks(piece) {
                let _may_fail = server.decrypt(&mut part.to_vec(), &mut plain);
            }
            server.encrypt(b"reply", &mut Vec::new());
            server.close(&mut Vec::new());
            prop_assert!(plain.is_empty());
        }

        #[test]
        fn tampered_hello_is_never_a_panic(at in 0_usize..200, value in any::<u8>(), piece in 1_usize..300) {
            let (mut server, mut client) = server_and_client();
            let mut records = sent(&mut client);
            let at = at % records.len();
            records[at] = value;
            for part in records.chunks(piece) {
                let _may_fail = server.decrypt(&mut part.to_vec(), &mut Vec::new());
            }
            server.encrypt(b"reply", &mut Vec::new());
            server.close(&mut Vec::new());
        }
    }
}
