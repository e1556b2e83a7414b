//! Properties that must hold for any bytes from the network: one function for each fuzz target of `fuzz/`.
//!
//! Each function takes the bytes of one input and panics when a property does not hold. The targets feed them with
//! libFuzzer; the tests below feed them with the committed corpora and with mutants of these, on the stable toolchain. Where
//! possible, the result is compared with other code: grammar and values with `serde_json`, heads with `httparse`. Signatures
//! are made and broken here. Input that arrives in pieces must give the same result as the whole input.

mod broker;
mod durable_streams;
mod http_request;
mod json;
mod poll;
mod rpc_answer;
mod serde_values;
mod sse_request;
#[cfg(test)]
mod tests;
mod tokens;
mod websocket;

pub use self::broker::broker;
pub use self::durable_streams::durable_streams;
pub use self::http_request::http_request;
pub use self::json::json;
pub use self::poll::poll;
pub use self::rpc_answer::rpc_answer;
pub use self::sse_request::sse_request;
pub use self::tokens::tokens;
pub use self::websocket::websocket;

/// The bytes of one input, taken from the front: first choices, then data. When the input is too short the choices are 0.
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
