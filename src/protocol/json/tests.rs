use proptest::prelude::*;

use super::*;

fn escaped(text: &str) -> String {
    let mut out = Vec::new();
    escape_into(&mut out, text);
    String::from_utf8(out).unwrap()
}

#[test]
fn strings_are_escaped_as_the_reference_does() {
    fn check(text: &str, expected: &str) {
        assert_eq!(escaped(text), expected, "{text:?}");
    }
    check("", r#""""#);
    check("plain", r#""plain""#);
    check("<b>&", r#""\u003cb\u003e\u0026""#);
    check("\u{2028}x\u{2029}", r#""\u2028x\u2029""#);
    check("\u{2027}\u{202a}\u{20ac}€", "\"\u{2027}\u{202a}\u{20ac}€\"");
    check("\"\\", r#""\"\\""#);
    check("\u{8}\u{c}\n\r\t", r#""\b\f\n\r\t""#);
    check("\0\u{1}\u{1f}", r#""\u0000\u0001\u001f""#);
    check("/'\u{7f}", "\"/'\u{7f}\"");
    check("ü日本🎉", "\"ü日本🎉\"");
}

/// Escapes each character on its own, without runs and blocks.
fn escaped_one_by_one(text: &str) -> String {
    let mut out = "\"".to_owned();
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            _ => out.push(character),
        }
    }
    out + "\""
}

proptest! {
    /// Runs of all lengths near the length of a block and of a piece, of characters with no, short and long escapes, between
    /// characters of each kind.
    #[test]
    fn long_strings_are_escaped_like_short_ones(
        parts in prop::collection::vec(
            ("[xx\"\u{1}\u{2028}]", 0usize..140, "[\\x00-\\x7f€\u{2028}\u{2029}\u{2030}🎉]{0,3}"),
            0..8,
        ),
        before in 0usize..300,
    ) {
        let text: String = parts
            .iter()
            .map(|(character, run, others)| character.repeat(*run) + others)
            .collect();
        let mut out = vec![b'~'; before];
        escape_into(&mut out, &text);
        prop_assert_eq!(&out[..before], vec![b'~'; before]);
        let (out, expected) = (&out[before..], escaped_one_by_one(&text));
        prop_assert_eq!(str::from_utf8(out), Ok(&*expected));
        prop_assert!(out.len() <= escaped_bytes(&text));
        let is_exact = !text.as_bytes().contains(&0xE2);
        prop_assert!(!is_exact || out.len() == escaped_bytes(&text));
    }
}

#[test]
fn only_complete_json_texts_are_valid() {
    fn check(text: &str, expected: bool) {
        assert_eq!(is_valid_json(text), expected, "{text:?}");
    }
    for text in [
        "{}",
        "[]",
        "0",
        "-0",
        "1.50",
        "1e-7",
        "1E+400",
        "true",
        "false",
        "null",
        r#""""#,
        r#""\ud800""#,
    ] {
        check(text, true);
        check(&format!(" \t\r\n{text} \t\r\n"), true);
        check(&format!("[{text},{text}]"), true);
        check(&format!("{{\"a\" : {text} , \"b\":[{{}},[]]}}"), true);
        check(&format!("{text} x"), false);
        check(&format!("\u{feff}{text}"), false);
        check(&format!("[{text},]"), false);
        check(&format!("{{\"a\":{text},}}"), false);
        check(&format!("{{{text}}}"), false);
        check(&format!("[{text}}}"), false);
    }
    for text in [
        "", " ", "plain", "01", "-", "1.", ".5", "1e", "+1", "NaN", "inf", "tru", "nullx", "{",
        "]", "[1",
    ] {
        check(text, false);
    }
    for text in [
        "\"",
        "\"\n\"",
        r#""\x""#,
        r#""\u12g4""#,
        r#""\u12"#,
        r#"{"a"}"#,
        r#"{"a":}"#,
        "{1:2}",
        "[1 2]",
    ] {
        check(text, false);
    }
}

#[test]
fn nesting_has_a_limit_and_costs_no_stack() {
    fn check(opening: &str, closing: &str, depth: usize, expected: bool) {
        let text = opening.repeat(depth) + "1" + &closing.repeat(depth);
        assert_eq!(is_valid_json(&text), expected, "{opening} {depth}");
    }
    let run = || {
        check("[", "]", NESTING_MAX, true);
        check("[", "]", NESTING_MAX + 1, false);
        check(r#"{"a":"#, "}", NESTING_MAX, true);
        check(r#"{"a":"#, "}", NESTING_MAX + 1, false);
        check(r#"[{"a":"#, "}]", NESTING_MAX / 2, true);
        check(r#"[{"a":[],"b":"#, "}]", 65, true);
        check("[", "}", 64, false);
        assert!(!is_valid_json("[".repeat(5_000_000)));
    };
    std::thread::Builder::new()
        .stack_size(64 * 1024)
        .spawn(run)
        .unwrap()
        .join()
        .unwrap();
}

#[test]
fn strings_are_unescaped_and_repaired() {
    fn check(json: &[u8], expected: &str) {
        assert_eq!(
            decode_string(json).as_deref(),
            Some(expected),
            "{}",
            json.escape_ascii()
        );
    }
    check(br#""plain""#, "plain");
    check(br#" "\"\\\/\b\f\n\r\t" "#, "\"\\/\u{8}\u{c}\n\r\t");
    check(br#""\u00e9\u20AC""#, "é€");
    check(br#""\ud83c\udf89!""#, "🎉!");
    check(br#""\ud83c""#, "\u{fffd}");
    check(br#""\ud83cx""#, "\u{fffd}x");
    check(br#""\ud83c\u0041""#, "\u{fffd}A");
    check(br#""\udf89\ud83c""#, "\u{fffd}\u{fffd}");
    check(br#""\ud83c\ud83c\udf89""#, "\u{fffd}🎉");
    check(b"\"\xff\"", "\u{fffd}");
    check(b"\"\\n\xff\"", "\n\u{fffd}");
}

#[test]
fn a_string_is_found_at_every_distance_from_the_word_border() {
    for length in 0..100 {
        for special in ["\"", "\\", "\n"] {
            let text = "é".repeat(length / 2) + &"x".repeat(length % 2) + special + "tail";
            let json = serde_json::to_string(&text).unwrap();
            assert_eq!(decode_string(json.as_bytes()), Some(text));
        }
    }
}

proptest! {
    #[test]
    fn escaping_round_trips_through_an_independent_decoder(text in any::<String>()) {
        prop_assert_eq!(&serde_json::from_str::<String>(&escaped(&text)).unwrap(), &text);
        prop_assert_eq!(decode_string(escaped(&text).as_bytes()), Some(text));
    }

    #[test]
    fn unescaping_agrees_with_an_independent_decoder(
        body in r#"(\\["\\/bfnrt]|\\u00[0-7][0-9a-fA-F]|\\u20ac|\\ud83c\\udf89|é|[a-z]{1,50}){0,12}"#
    ) {
        let json = format!("\"{body}\"");
        prop_assert_eq!(decode_string(json.as_bytes()), serde_json::from_str(&json).ok(), "{}", json);
    }

    #[test]
    fn plain_runs_end_where_a_byte_by_byte_search_says(plain in 0..150_usize, rest in any::<Vec<u8>>()) {
        let bytes = [vec![b'~'; plain], rest].concat();
        let expected = bytes.iter().position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\');
        let expected = expected.unwrap_or(bytes.len());
        prop_assert_eq!(plain_run(&bytes), expected);
    }

    #[test]
    fn validity_agrees_with_an_independent_decoder(text in r#"[\[\]{}:,"\\ un0-9.eE+-]{0,12}"#) {
        let independent: Result<serde::de::IgnoredAny, _> = serde_json::from_str(&text);
        prop_assert_eq!(is_valid_json(&text), independent.is_ok(), "{}", text);
    }

    #[test]
    fn a_cut_text_is_an_error_and_never_a_panic(text in any::<String>(), junk in any::<Vec<u8>>()) {
        let json = serde_json::json!({ &text: [text, 1.5e3, null_or_bool(&junk)] }).to_string();
        prop_assert!(is_valid_json(&json));
        for cut in 0..json.len() {
            prop_assert!(!is_valid_json(&json.as_bytes()[..cut]));
            is_valid_json([&json.as_bytes()[..cut], &junk].concat());
        }
        is_valid_json(&junk);
        decode_string(&junk);
    }
}

fn null_or_bool(junk: &[u8]) -> Option<bool> {
    junk.first().map(|byte| byte % 2 == 0)
}
