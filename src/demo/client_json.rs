//! JSON that a browser wrote. Pure; called by `channels`.

use serde::de::DeserializeOwned;

/// The page's own messages are never this deep. The limit is needed because sonic-rs skips nested values by recursion
/// without a limit: a megabyte of brackets would overflow the stack and end the process.
const NESTING_MAX: usize = 16;

/// Decodes `text`; `None` when it does not have the form of `T`, or is nested deeper than [`NESTING_MAX`].
pub fn decode<T: DeserializeOwned>(text: &str) -> Option<T> {
    if nesting(text) > NESTING_MAX {
        return None;
    }
    sonic_rs::from_str(text).ok()
}

/// How deep arrays and objects are nested; brackets inside strings do not count.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize, Debug, PartialEq)]
    struct Params {
        channel: String,
    }

    #[test]
    fn brackets_by_the_thousand_are_refused_before_they_are_parsed() {
        let deep = format!(r#"{{"channel":"A","x":{}}}"#, "[".repeat(1_000_000));
        assert_eq!(decode::<Params>(&deep), None);
        let plain = decode::<Params>(r#"{"channel":"A","x":[[1]]}"#).expect("well-formed");
        assert_eq!(plain.channel, "A");
        let talk = format!(r#"{{"channel":"{}\" ["}}"#, "[".repeat(100));
        assert!(
            decode::<Params>(&talk).is_some(),
            "brackets in a text are no nesting"
        );
    }
}
