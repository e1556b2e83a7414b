//! Numbers and texts one after the other in one piece of memory. Only this process reads what it has packed.

/// Builds a piece.
#[derive(Default)]
pub struct Packing {
    bytes: Vec<u8>,
}

impl Packing {
    /// Seven bits a byte, the lowest first; the highest bit of a byte says that more follow.
    pub fn number(&mut self, mut number: usize) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    pub fn text(&mut self, text: &str) {
        self.number(text.len());
        self.bytes.extend_from_slice(text.as_bytes());
    }

    pub fn finish(self) -> Box<[u8]> {
        self.bytes.into_boxed_slice()
    }
}

/// Reads a piece in the order in which it was packed.
///
/// # Panics
/// All methods, when they are not called in that order.
pub struct Unpacking<'a> {
    bytes: &'a [u8],
}

impl<'a> Unpacking<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub fn number(&mut self) -> usize {
        let mut number = 0;
        for shift in (0..usize::BITS).step_by(7) {
            let (&byte, rest) = self.bytes.split_first().expect("a number was packed");
            self.bytes = rest;
            number |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        number
    }

    pub fn text(&mut self) -> &'a str {
        let length = self.number();
        let (text, rest) = self.bytes.split_at(length);
        self.bytes = rest;
        str::from_utf8(text).expect("a text was packed")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_packed_comes_out(numbers in prop::collection::vec(any::<usize>(), 0..9), text in any::<String>()) {
            let mut packing = Packing::default();
            for (number, bits) in numbers.iter().zip(0..) {
                packing.number(number >> (bits * 7));
                packing.text(&text);
            }
            let packed = packing.finish();
            let mut unpacking = Unpacking::new(&packed);
            for (number, bits) in numbers.iter().zip(0..) {
                prop_assert_eq!(unpacking.number(), number >> (bits * 7));
                prop_assert_eq!(unpacking.text(), &text);
            }
            prop_assert!(unpacking.bytes.is_empty());
        }
    }
}
