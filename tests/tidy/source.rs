//! Rust files as the checks read them: code without comments and texts, comments without code, and what ships without tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

pub struct Source {
    /// From the root of the project: `src/hub/table.rs`.
    pub path: String,
    pub text: String,
    /// The same lines; comments and the contents of texts are blank.
    pub code: String,
    /// The same lines; all but comments is blank.
    pub comments: String,
    /// The code without items under `cfg(test)`; empty where the whole file is test code.
    pub shipped: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let (code, comments) = split(text);
        let shipped = without_tests(&code);
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            code,
            comments,
            shipped,
        }
    }

    /// `hub` for `src/hub/table.rs`, `check` for `src/check.rs`.
    pub fn module(&self) -> &str {
        let below = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let first = below.split('/').next().unwrap_or(below);
        first.strip_suffix(".rs").unwrap_or(first)
    }
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folders with Rust code of the project.
const FOLDERS: [&str; 4] = ["benches", "fuzz/fuzz_targets", "src", "tests"];

/// Read once for all tests, in order of their paths.
static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(|| {
    let mut files = Vec::new();
    for folder in FOLDERS {
        collect(&root().join(folder), &mut files);
    }
    files.sort();
    let read = |file: &PathBuf| {
        let path = file.strip_prefix(root()).expect("within the project");
        let text = fs::read_to_string(file).expect("UTF-8");
        Source::new(&path.display().to_string(), &text)
    };
    let mut sources: Vec<Source> = files.iter().map(read).collect();
    mark_test_files(&mut sources);
    sources
});

/// Every Rust file whose path begins with `folder`; with the empty one, all.
pub fn sources(folder: &str) -> Vec<&'static Source> {
    let below = |source: &&Source| source.path.starts_with(folder);
    let sources: Vec<&Source> = SOURCES.iter().filter(below).collect();
    assert!(!sources.is_empty(), "no Rust files below {folder:?}");
    sources
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Files that are modules under `cfg(test)` do not ship.
fn mark_test_files(sources: &mut [Source]) {
    let modules: Vec<String> = sources.iter().flat_map(test_modules).collect();
    for source in sources {
        let is_test = modules.iter().any(|module| {
            source.path == format!("{module}.rs") || source.path.starts_with(&format!("{module}/"))
        });
        if is_test {
            source.shipped.clear();
        }
    }
}

/// Paths without `.rs` of the files that `#[cfg(test)] mod name;` of this file asks for.
fn test_modules(source: &Source) -> Vec<String> {
    let mut folder = source.path.trim_end_matches(".rs").to_owned();
    for root_of_folder in ["/mod", "/lib", "/main"] {
        if let Some(parent) = folder.strip_suffix(root_of_folder) {
            folder = parent.to_owned();
        }
    }
    test_items(&source.code)
        .into_iter()
        .filter_map(|(start, end)| {
            let item = source.code[start..end].strip_suffix(';')?;
            let (_, name) = item.rsplit_once("mod ")?;
            Some(format!("{folder}/{}", name.trim()))
        })
        .collect()
}

fn without_tests(code: &str) -> String {
    let mut shipped = String::with_capacity(code.len());
    let mut from = 0;
    for (start, end) in test_items(code) {
        shipped.push_str(&code[from..start]);
        shipped.extend(code[start..end].chars().map(blank));
        from = end;
    }
    shipped.push_str(&code[from..]);
    shipped
}

/// Where items under `#[cfg(test)]` or `#[cfg(any(test, …))]` begin and end.
fn test_items(code: &str) -> Vec<(usize, usize)> {
    let mut items = Vec::new();
    let mut from = 0;
    while let Some(start) = ["#[cfg(test)]", "#[cfg(any(test,"]
        .iter()
        .filter_map(|mark| code[from..].find(mark))
        .min()
    {
        let start = from + start;
        let end = item_end(code, start);
        items.push((start, end));
        from = end;
    }
    items
}

/// The end of the item whose attributes begin at `start`.
fn item_end(code: &str, start: usize) -> usize {
    let mut at = start;
    while code[at..].starts_with('#') {
        at = closing(code, at + 1) + 1;
        at += code[at..].len() - code[at..].trim_start().len();
    }
    let is_item = code[at..].split_whitespace().next().is_some_and(|word| {
        !word.ends_with(':') && !word.ends_with(',') // a field or a variant
    });
    let mut depth = 0_usize;
    for (offset, c) in code[at..].char_indices() {
        match c {
            '{' if depth == 0 => return closing(code, at + offset) + 1,
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 0 => return at + offset,
            ')' | ']' | '}' => depth -= 1,
            ';' if depth == 0 => return at + offset + 1,
            ',' if depth == 0 && !is_item => return at + offset + 1,
            _ => {}
        }
    }
    code.len()
}

/// Where the bracket that opens at or behind `from` is closed.
pub fn closing(code: &str, from: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, c) in code[from..].char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => {
                depth -= 1;
                if depth == 0 {
                    return from + offset;
                }
            }
            _ => {}
        }
    }
    code.len() - 1
}

pub fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Where `word` stands in `code` as a whole word.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).filter_map(move |(at, _)| {
        let before = code[..at].chars().next_back();
        let behind = code[at + word.len()..].chars().next();
        let goes_on = word.starts_with(is_part) && before.is_some_and(is_part)
            || word.ends_with(is_part) && behind.is_some_and(is_part);
        (!goes_on).then_some(at)
    })
}

/// Whether names may have this character.
pub fn is_part(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The identifier at the start of `text`.
pub fn identifier(text: &str) -> &str {
    let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
    &text[..end]
}

/// What takes the place of `c`, so that lines keep their numbers.
fn blank(c: char) -> char {
    if c == '\n' { '\n' } else { ' ' }
}

/// The code and the comments of a text, each with the other blanked.
fn split(text: &str) -> (String, String) {
    let (mut code, mut comments) = (String::new(), String::new());
    let mut rest = text;
    while !rest.is_empty() {
        let (kind, length) = token(rest, text[..text.len() - rest.len()].chars().next_back());
        let (part, behind) = rest.split_at(length);
        let blanked: String = part.chars().map(blank).collect();
        match kind {
            Token::Code => {
                code.push_str(part);
                comments.push_str(&blanked);
            }
            Token::Comment => {
                code.push_str(&blanked);
                comments.push_str(part);
            }
            Token::Text => {
                code.push('"');
                code.push_str(&blanked[1.min(blanked.len())..]);
                code.push('"');
                comments.push_str(&blanked);
            }
        }
        rest = behind;
    }
    (code, comments)
}

enum Token {
    Code,
    Comment,
    Text,
}

/// The kind and the length of what stands at the start of `rest`.
fn token(rest: &str, before: Option<char>) -> (Token, usize) {
    if rest.starts_with("//") {
        return (Token::Comment, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (Token::Comment, block_comment(rest));
    }
    if rest.starts_with('"') {
        return (Token::Text, quoted(rest));
    }
    let in_word = before.is_some_and(is_part);
    if let Some(length) = raw_text(rest).filter(|_| !in_word) {
        return (Token::Text, length);
    }
    if let Some(length) = character(rest) {
        return (Token::Text, length);
    }
    let starts_something = |c: char| matches!(c, '/' | '"' | '\'' | 'r' | 'b');
    let mut behind_first = rest.char_indices().skip(1);
    let end = behind_first.find(|(_, c)| starts_something(*c));
    (Token::Code, end.map_or(rest.len(), |(at, _)| at))
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    loop {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            let Some(c) = rest[at..].chars().next() else {
                return at;
            };
            at += c.len_utf8();
        }
    }
}

/// The length of a text in quotes, both quotes included.
fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of `r"…"`, `r#"…"#` and their forms for bytes.
fn raw_text(rest: &str) -> Option<usize> {
    let behind = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = behind.len() - behind.trim_start_matches('#').len();
    let body = behind[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", &behind[..hashes]);
    let length = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(rest.len() - body.len() + length)
}

/// The length of a character in quotes; `None` for a lifetime.
fn character(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix('\'')?;
    if body.starts_with('\\') {
        let end = body.char_indices().skip(2).find(|(_, c)| *c == '\'')?.0;
        return Some(1 + end + 1);
    }
    let c = body.chars().next()?;
    body[c.len_utf8()..]
        .starts_with('\'')
        .then_some(1 + c.len_utf8() + 1)
}

#[test]
fn comments_and_texts_are_told_from_code() {
    let source = Source::new(
        "src/a/b.rs",
        "let a = \"// no\"; // yes { \nlet b = 'x'; /* one /* two */ } */ let c: &'a str = r#\"\"}\"#;\nlet d = '\\'';",
    );
    assert!(source.code.contains("let a = \""));
    assert!(!source.code.contains("no") && !source.code.contains("yes"));
    assert!(source.comments.contains("// yes {") && source.comments.contains("two"));
    assert!(source.code.contains("let c: &'a str = "));
    assert!(!source.code.contains(['{', '}']));
    assert!(source.code.ends_with(';'));
    assert_eq!(source.module(), "a");
    for lines in [&source.code, &source.comments, &source.shipped] {
        assert_eq!(lines.lines().count(), 3);
    }
}

#[test]
fn test_code_does_not_ship() {
    let source = Source::new(
        "src/a.rs",
        "fn one() {}\n#[cfg(test)]\nuse two::{three, four};\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n    fn five() { six[7] }\n}\nfn eight() {}\n",
    );
    assert!(source.shipped.contains("one") && source.shipped.contains("eight"));
    for gone in ["two", "three", "five", "six"] {
        assert!(!source.shipped.contains(gone), "{gone}");
    }
    let field = Source::new(
        "src/a.rs",
        "struct S {\n    #[cfg(test)]\n    one: Two<A>,\n    three: u8,\n}\n",
    );
    assert!(!field.shipped.contains("one") && field.shipped.contains("three"));
}

#[test]
fn modules_for_tests_are_found_by_their_declaration() {
    let mut sources = [
        Source::new("src/a/mod.rs", "#[cfg(test)]\nmod tests;\nmod b;\n"),
        Source::new("src/a/tests.rs", "fn one() {}"),
        Source::new("src/a/tests/more.rs", "fn two() {}"),
        Source::new(
            "src/a/b.rs",
            "fn three() {}\n#[cfg(any(test, feature = \"x\"))]\nmod own;",
        ),
        Source::new("src/a/b/own.rs", "fn four() {}"),
    ];
    mark_test_files(&mut sources);
    let shipped: Vec<bool> = sources.iter().map(|s| s.shipped.contains("fn")).collect();
    assert_eq!(shipped, [false, false, false, true, false]);
}
