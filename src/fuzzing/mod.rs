//! What must hold for any bytes from the network: one function for each fuzz target of `fuzz/`.
//!
//! Each takes the bytes of one input and panics when a property does not hold. The targets feed them with libFuzzer; the
//! tests below feed them with the committed corpora and with mutants of these, on the stable toolchain. Where it can be
//! done, what is checked is not our own word: grammar and values are compared with `serde_json`, heads with `httparse`,
//! signatures are made and broken here, and what arrives in pieces must come out as what arrives whole.

mod http_request;
mod json;
mod rpc_answer;
mod serde_values;
#[cfg(test)]
mod tests;
mod tokens;
mod websocket;

pub use self::http_request::http_request;
pub use self::json::json;
pub use self::rpc_answer::rpc_answer;
pub use self::tokens::tokens;
pub use self::websocket::websocket;

/// The bytes of one input, taken from the front: first choices, then data. An input that is too short chooses zeros.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// At most `count` bytes.
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// 1 to 256: the size of the pieces in which data arrives.
    fn piece_bytes(&mut self) -> usize {
        1 + usize::from(self.byte())
    }
}
