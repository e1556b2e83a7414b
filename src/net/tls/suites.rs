//! Cipher suites of TLS 1.3 that keep only the keys while a connection is idle.
//!
//! AES-GCM needs tables that are made from a key. rustls keeps them as long as the connection, 560 bytes for each direction;
//! ring makes them in a fraction of a microsecond. A connection of this server is idle most of the time, and each record
//! costs a system call of several microseconds anyway. So 64 bytes are kept for each direction, and the tables are made for
//! each record. rustls does all other parts of TLS, and ring does all cryptography, as before. TLS 1.2 is not changed,
//! because few clients have nothing newer.

use std::sync::LazyLock;

use ring::aead;
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, MessageEncrypter,
    Nonce, OutboundOpaqueMessage, OutboundPlainMessage, PrefixedPayload, Tls13AeadAlgorithm,
    UnsupportedOperationError, make_tls13_aad,
};
use rustls::crypto::{CryptoProvider, ring as rustls_ring};
use rustls::{
    CipherSuite, CipherSuiteCommon, ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion,
    SupportedCipherSuite, Tls13CipherSuite,
};

/// The suites of rustls, with those of TLS 1.3 replaced by these. The order is the same.
pub fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: SUITES.clone(),
        ..rustls_ring::default_provider()
    }
}

/// Made once, because rustls wants suites with a static lifetime.
static SUITES: LazyLock<Vec<SupportedCipherSuite>> = LazyLock::new(|| {
    let suites = rustls_ring::default_provider().cipher_suites;
    suites.into_iter().map(resting).collect()
});

fn resting(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    let SupportedCipherSuite::Tls13(original) = suite else {
        return suite;
    };
    let aead_alg = match original.common.suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => &AES_128_GCM,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => &AES_256_GCM,
        // ChaCha20 has no tables, but all keys of ring have the size of the largest.
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => &CHACHA20_POLY1305,
        // A suite that is not known here stays as rustls has it.
        _ => return suite,
    };
    SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: original.common.suite,
            hash_provider: original.common.hash_provider,
            confidentiality_limit: original.common.confidentiality_limit,
        },
        hkdf_provider: original.hkdf_provider,
        aead_alg,
        quic: None,
    })))
}

static AES_128_GCM: RestingAead = RestingAead(&aead::AES_128_GCM);
static AES_256_GCM: RestingAead = RestingAead(&aead::AES_256_GCM);
static CHACHA20_POLY1305: RestingAead = RestingAead(&aead::CHACHA20_POLY1305);

struct RestingAead(&'static aead::Algorithm);

impl Tls13AeadAlgorithm for RestingAead {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        Box::new(RestingKey::new(self.0, key, iv))
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        Box::new(RestingKey::new(self.0, key, iv))
    }

    fn key_len(&self) -> usize {
        self.0.key_len()
    }

    /// Called only to export keys, for example to the kernel.
    fn extract_keys(
        &self,
        _key: AeadKey,
        _iv: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Err(UnsupportedOperationError)
    }
}

/// The key of one direction.
struct RestingKey {
    algorithm: &'static aead::Algorithm,
    key: AeadKey,
    iv: Iv,
}

const _: () = assert!(size_of::<RestingKey>() <= 64);

impl RestingKey {
    fn new(algorithm: &'static aead::Algorithm, key: AeadKey, iv: Iv) -> Self {
        Self { algorithm, key, iv }
    }

    /// The key with its tables, for one record.
    fn awake(&self) -> Result<aead::LessSafeKey, ring::error::Unspecified> {
        aead::UnboundKey::new(self.algorithm, self.key.as_ref()).map(aead::LessSafeKey::new)
    }

    fn nonce(&self, sequence: u64) -> aead::Nonce {
        // The nonce is unique: rustls counts the records and closes the connection before the counter wraps.
        aead::Nonce::assume_unique_for_key(Nonce::new(&self.iv, sequence).0)
    }
}

impl MessageEncrypter for RestingKey {
    /// Source: RFC 8446 §5.2.
    fn encrypt(
        &mut self,
        message: OutboundPlainMessage<'_>,
        sequence: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        let bytes = self.encrypted_payload_len(message.payload.len());
        let mut payload = PrefixedPayload::with_capacity(bytes);
        payload.extend_from_chunks(&message.payload);
        payload.extend_from_slice(&message.typ.to_array());
        let additional = aead::Aad::from(make_tls13_aad(bytes));
        self.awake()
            .and_then(|key| {
                key.seal_in_place_append_tag(self.nonce(sequence), additional, &mut payload)
            })
            .map_err(|_| Error::EncryptError)?;
        // Records of TLS 1.3 have the type and version of TLS 1.2 application data, whatever they contain.
        Ok(OutboundOpaqueMessage::new(
            ContentType::ApplicationData,
            ProtocolVersion::TLSv1_2,
            payload,
        ))
    }

    fn encrypted_payload_len(&self, payload_len: usize) -> usize {
        // The content type follows the payload.
        payload_len + 1 + self.algorithm.tag_len()
    }
}

impl MessageDecrypter for RestingKey {
    /// Source: RFC 8446 §5.2.
    fn decrypt<'a>(
        &mut self,
        mut message: InboundOpaqueMessage<'a>,
        sequence: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let payload = &mut message.payload;
        let additional = aead::Aad::from(make_tls13_aad(payload.len()));
        let plain_bytes = self
            .awake()
            .and_then(|key| {
                let opened = key.open_in_place(self.nonce(sequence), additional, payload)?;
                Ok(opened.len())
            })
            .map_err(|_| Error::DecryptError)?;
        payload.truncate(plain_bytes);
        message.into_tls13_unpadded_message()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aead_of(suite: SupportedCipherSuite) -> Option<&'static dyn Tls13AeadAlgorithm> {
        suite.tls13().map(|suite| suite.aead_alg)
    }

    fn keyed(algorithm: &dyn Tls13AeadAlgorithm) -> Vec<(AeadKey, Iv)> {
        // Keys of 16 bytes cannot be made outside of rustls, so tests with whole connections cover those suites.
        let bytes = [7; 32];
        (0..2)
            .filter(|_| algorithm.key_len() == bytes.len())
            .map(|_| (AeadKey::from(bytes), Iv::from([9; 12])))
            .collect()
    }

    #[test]
    fn suites_keep_their_names_and_their_order() {
        let names = |suites: &[SupportedCipherSuite]| -> Vec<CipherSuite> {
            suites.iter().map(SupportedCipherSuite::suite).collect()
        };
        let ours = provider().cipher_suites;
        assert_eq!(
            names(&ours),
            names(&rustls_ring::default_provider().cipher_suites)
        );
    }

    #[test]
    fn records_are_those_that_rustls_makes() {
        let originals = rustls_ring::default_provider().cipher_suites;
        let mut compared = 0;
        for (ours, original) in provider().cipher_suites.into_iter().zip(originals) {
            let (Some(ours), Some(original)) = (aead_of(ours), aead_of(original)) else {
                continue;
            };
            let keys = keyed(ours).into_iter().zip(keyed(original));
            for ((our_key, our_iv), (key, iv)) in keys.take(1) {
                let mut encrypters = [ours.encrypter(our_key, our_iv), original.encrypter(key, iv)];
                for (sequence, bytes) in [(0, 0), (1, 1), (77, 200), (u64::MAX, 16_384)] {
                    let text = vec![b'x'; bytes];
                    let [one, other] = encrypters.each_mut().map(|encrypter| {
                        let message = OutboundPlainMessage {
                            typ: ContentType::ApplicationData,
                            version: ProtocolVersion::TLSv1_3,
                            payload: text.as_slice().into(),
                        };
                        let record = encrypter.encrypt(message, sequence).expect("a record");
                        record.encode()
                    });
                    assert!(one == other, "{bytes} bytes at {sequence}");
                    compared += 1;
                }
            }
        }
        assert_eq!(compared, 8);
    }
}
