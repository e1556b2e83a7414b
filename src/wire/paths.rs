//! The paths of `--path`: literal ones, `{placeholders}` and a trailing `*`.
//!
//! Compares paths as they are, still percent-encoded. This file does not know the other routes: a router asks for the
//! [`Specificity`] and takes the most specific route. Called by the HTTP front.
//!
//! Source: `contract/websocket.md` §2; where the reference panics at boot there is a [`PathPatternError`] here.

use regex_lite::Regex;
use thiserror::Error;

/// A list of patterns, checked at boot.
#[derive(Debug, Clone)]
pub struct PathPatterns {
    patterns: Vec<Pattern>,
}

/// How closely a pattern matches a path. The greatest wins, so that `/health` goes before `/*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Specificity {
    /// A trailing `*` covers the path.
    Wildcard,
    /// The path has a value for each placeholder.
    Placeholder,
    /// The path equals a pattern without placeholders.
    Exact,
}

/// Why a pattern is refused. Each variant holds the pattern.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PathPatternError {
    #[error("path {0:?} must start with '/'")]
    NoLeadingSlash(String),
    #[error("path {0:?} may have '*' only as its last character")]
    WildcardNotLast(String),
    #[error("path {0:?} has a '{{' without its '}}'")]
    UnclosedPlaceholder(String),
    #[error("path {pattern:?} has two placeholders called {name:?}")]
    DuplicatePlaceholder { pattern: String, name: String },
    #[error("path {pattern:?} has a bad regular expression {expression:?}: {cause}")]
    BadExpression {
        pattern: String,
        expression: String,
        cause: String,
    },
}

impl PathPatterns {
    /// Checks the entries of the option. They are taken as they are, without trimming.
    ///
    /// # Errors
    /// The first entry that is not a pattern.
    pub fn new(patterns: &[String]) -> Result<Self, PathPatternError> {
        let patterns = patterns
            .iter()
            .map(|text| Pattern::parse(text))
            .collect::<Result<_, _>>()?;
        Ok(PathPatterns { patterns })
    }

    /// True when any pattern matches `path`, which must have no query.
    pub fn matches(&self, path: &str) -> bool {
        self.specificity(path).is_some()
    }

    /// The specificity of the best matching pattern; `None` when none matches.
    pub fn specificity(&self, path: &str) -> Option<Specificity> {
        self.patterns
            .iter()
            .filter(|pattern| pattern.matches(path))
            .map(Pattern::specificity)
            .max()
    }
}

#[derive(Debug, Clone)]
struct Pattern {
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
enum Part {
    Literal(String),
    /// One non-empty value up to `tail`, the byte after it in the pattern, or up to the end of the path segment.
    Placeholder {
        tail: u8,
        expression: Option<Regex>,
    },
    /// The rest of the path, which may be empty.
    Rest,
}

impl Pattern {
    fn parse(pattern: &str) -> Result<Pattern, PathPatternError> {
        if !pattern.starts_with('/') {
            return Err(PathPatternError::NoLeadingSlash(pattern.to_owned()));
        }
        let mut parts = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        let mut rest = pattern;
        while !rest.is_empty() {
            let special = rest.find(['{', '*']).unwrap_or(rest.len());
            let (literal, from_special) = rest.split_at(special);
            if !literal.is_empty() {
                parts.push(Part::Literal(literal.to_owned()));
            }
            rest = match from_special.as_bytes() {
                [] => "",
                [b'*'] => {
                    parts.push(Part::Rest);
                    ""
                }
                [b'*', ..] => return Err(PathPatternError::WildcardNotLast(pattern.to_owned())),
                _ => {
                    let (inside, after) = split_placeholder(from_special)
                        .ok_or_else(|| PathPatternError::UnclosedPlaceholder(pattern.to_owned()))?;
                    let name = inside.split_once(':').map_or(inside, |(name, _)| name);
                    if names.contains(&name) {
                        return Err(PathPatternError::DuplicatePlaceholder {
                            pattern: pattern.to_owned(),
                            name: name.to_owned(),
                        });
                    }
                    names.push(name);
                    parts.push(placeholder(pattern, inside, after)?);
                    after
                }
            };
        }
        Ok(Pattern { parts })
    }

    fn matches(&self, path: &str) -> bool {
        let mut rest = path;
        for part in &self.parts {
            let after = match part {
                Part::Literal(literal) => rest.strip_prefix(literal.as_str()),
                Part::Placeholder { tail, expression } => {
                    after_value(rest, *tail, expression.as_ref())
                }
                Part::Rest => return true,
            };
            match after {
                Some(after) => rest = after,
                None => return false,
            }
        }
        rest.is_empty()
    }

    fn specificity(&self) -> Specificity {
        match self.parts.as_slice() {
            [.., Part::Rest] => Specificity::Wildcard,
            [Part::Literal(_)] => Specificity::Exact,
            _ => Specificity::Placeholder,
        }
    }
}

/// Splits `{inside}after`. Braces inside a regular expression do not end the placeholder.
fn split_placeholder(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some((&text[1..at], &text[at + 1..]));
        }
    }
    None
}

fn placeholder(pattern: &str, inside: &str, after: &str) -> Result<Part, PathPatternError> {
    let expression = match inside.split_once(':') {
        None => None,
        Some((_, expression)) => {
            let anchored = Regex::new(&format!("^(?:{expression})$"));
            Some(anchored.map_err(|error| PathPatternError::BadExpression {
                pattern: pattern.to_owned(),
                expression: expression.to_owned(),
                cause: error.to_string(),
            })?)
        }
    };
    let tail = after.bytes().next().unwrap_or(b'/');
    Ok(Part::Placeholder { tail, expression })
}

/// The rest of `text` after the placeholder's value, if `text` starts with one.
fn after_value<'a>(text: &'a str, tail: u8, expression: Option<&Regex>) -> Option<&'a str> {
    let end = text
        .bytes()
        .position(|byte| byte == tail || byte == b'/')
        .unwrap_or(text.len());
    let (value, after) = text.split_at_checked(end)?;
    let fits = !value.is_empty() && expression.is_none_or(|expression| expression.is_match(value));
    fits.then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn patterns(list: &str) -> Result<PathPatterns, PathPatternError> {
        PathPatterns::new(&list.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    fn check(list: &str, matching: &[&str], others: &[&str]) {
        let patterns = patterns(list).expect(list);
        for path in matching {
            assert!(patterns.matches(path), "{list} must match {path}");
        }
        for path in others {
            assert!(!patterns.matches(path), "{list} must not match {path}");
        }
    }

    #[test]
    fn literal_paths_match_exactly() {
        check(
            "/cable",
            &["/cable"],
            &["/cable/", "//cable", "/CABLE", "/%63able", "/cabl", "/"],
        );
        check("/ws,/cable", &["/ws", "/cable"], &["/ws,/cable", "/"]);
        check("/", &["/"], &["/cable", ""]);
    }

    #[test]
    fn a_trailing_star_matches_the_rest() {
        check(
            "/cable/*",
            &["/cable/", "/cable/a", "/cable/a/b"],
            &["/cable", "/cabl/a"],
        );
        check("/cable*", &["/cable", "/cable/", "/cable/a/b"], &["/cabl"]);
        check("/*", &["/", "/a", "/a/b"], &["*"]);
    }

    #[test]
    fn a_placeholder_matches_one_segment() {
        check(
            "/cable/{id}",
            &["/cable/5", "/cable/a-b"],
            &["/cable", "/cable/", "/cable/5/", "/cable/a/b"],
        );
        check(
            "/cable/{id:[0-9]+}",
            &["/cable/57"],
            &["/cable/x", "/cable/5x", "/cable/"],
        );
        check("/{id:[0-9]{3}}/ws", &["/123/ws"], &["/12/ws", "/1234/ws"]);
        check("/{a:x|yy}", &["/x", "/yy"], &["/xz", "/zyy"]);
        check("/{a}-{b}", &["/x-y"], &["/x", "/x-", "/-y", "/x/y"]);
        check(
            "/{tenant}/cable*",
            &["/t/cable", "/t/cable/x"],
            &["/cable", "//cable"],
        );
        check("/{any:.*}", &["/x"], &["/x/y", "/"]);
    }

    #[test]
    fn the_most_specific_pattern_counts() {
        let patterns = patterns("/*,/a/{id},/a/b").unwrap();
        assert_eq!(patterns.specificity("/a/b"), Some(Specificity::Exact));
        assert_eq!(patterns.specificity("/a/c"), Some(Specificity::Placeholder));
        assert_eq!(patterns.specificity("/a"), Some(Specificity::Wildcard));
        assert!(Specificity::Exact > Specificity::Placeholder);
        assert!(Specificity::Placeholder > Specificity::Wildcard);
    }

    #[test]
    fn bad_patterns_are_refused_with_their_text() {
        fn bad(list: &str, expected: &str) {
            assert_eq!(patterns(list).expect_err(list).to_string(), expected);
        }
        bad("", "path \"\" must start with '/'");
        bad("/ws, /cable", "path \" /cable\" must start with '/'");
        bad(
            "/a*b",
            "path \"/a*b\" may have '*' only as its last character",
        );
        bad(
            "/*/{id}",
            "path \"/*/{id}\" may have '*' only as its last character",
        );
        bad("/{id", "path \"/{id\" has a '{' without its '}'");
        bad(
            "/{a}/{a}",
            "path \"/{a}/{a}\" has two placeholders called \"a\"",
        );
        assert!(matches!(
            patterns("/{a:[}"),
            Err(PathPatternError::BadExpression { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_pattern_and_path_are_handled_without_panic(pattern in "/[a-z/{}*:+é-]{0,12}", path in "[/a-zé-]{0,12}") {
            if let Ok(patterns) = PathPatterns::new(&[pattern]) {
                let _ = patterns.specificity(&path);
            }
        }
    }
}
