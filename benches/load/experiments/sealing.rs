//! What it costs to encrypt a TLS record when the tables of its key are stored, and when they are made for each record.

use std::hint::black_box;

use ring::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};

use super::cost::Cost;
use super::{Bench, Setting};

const PAYLOADS: [usize; 2] = [200, 16_000];
/// Records between two readings of the clock.
const RECORDS: u64 = 100;
/// Keys are used in turn, so that stored tables are not always in the nearest cache.
const KEYS: usize = 5_000;

pub fn run(bench: &mut Bench) {
    let suites = [
        ("AES-128-GCM", &AES_128_GCM),
        ("AES-256-GCM", &AES_256_GCM),
        ("ChaCha20-Poly1305", &CHACHA20_POLY1305),
    ];
    for (suite, algorithm) in suites {
        for payload in PAYLOADS {
            bench.measure(
                &format!("sealing: {suite}, {payload} B, tables kept"),
                |setting, notes| {
                    let keys: Vec<LessSafeKey> =
                        (0..KEYS).map(|number| key(algorithm, number)).collect();
                    let nanos = measure(setting, payload, |number, record| {
                        seal(&keys[number % KEYS], record);
                    });
                    notes.say("CPU per record", "ns", nanos);
                },
            );
            bench.measure(
                &format!("sealing: {suite}, {payload} B, tables made"),
                |setting, notes| {
                    let nanos = measure(setting, payload, |number, record| {
                        seal(&key(algorithm, number % KEYS), record);
                    });
                    notes.say("CPU per record", "ns", nanos);
                },
            );
        }
    }
}

fn key(algorithm: &'static Algorithm, number: usize) -> LessSafeKey {
    let bytes = [number as u8; 32];
    let key = UnboundKey::new(algorithm, &bytes[..algorithm.key_len()]);
    LessSafeKey::new(key.expect("the length is the algorithm's"))
}

fn seal(key: &LessSafeKey, record: &mut [u8]) {
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    let tag = key.seal_in_place_separate_tag(nonce, Aad::from([0; 5]), record);
    black_box(tag.expect("a record is short").as_ref());
}

fn measure(setting: &Setting, payload: usize, mut seal: impl FnMut(usize, &mut [u8])) -> f64 {
    let mut cost = Cost::default();
    let mut record = vec![0; payload];
    let mut records = 0;
    while cost.elapsed < setting.time / 4 {
        cost.count(|| {
            for number in records..records + RECORDS {
                seal(number as usize, &mut record);
            }
        });
        records += RECORDS;
    }
    cost.micros_each(records) * 1e3
}
