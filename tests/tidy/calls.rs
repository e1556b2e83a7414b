//! The calls between the files of `shard/sessions/` form no circle.
//!
//! Imports do not show them: the methods of one type stand in many files. So calls are counted: of methods of `self`, of its
//! fields, of arguments and of variables whose types the folder defines, of associated functions, and of functions by name.
//! Calls through traits and through arguments of closures are not seen.

use std::collections::{BTreeMap, BTreeSet};

use crate::assert_only;
use crate::source::{Source, closing, identifier, is_part, line_of, sources, words};

const FOLDER: &str = "src/shard/sessions/";

/// One function of the folder.
struct Function {
    file: usize,
    /// The type whose method it is.
    of: Option<String>,
    name: String,
    /// Arguments and variables of types of the folder.
    variables: BTreeMap<String, String>,
    /// The type of the folder that it returns.
    returns: Option<String>,
    body: (usize, usize),
}

/// What the folder defines.
struct Folder<'a> {
    sources: &'a [&'a Source],
    types: BTreeSet<String>,
    /// The type of a field, by type and field.
    fields: BTreeMap<(String, String), String>,
    functions: Vec<Function>,
}

impl<'a> Folder<'a> {
    fn new(sources: &'a [&'a Source]) -> Self {
        let types = sources.iter().flat_map(|source| {
            ["struct", "enum"].into_iter().flat_map(move |keyword| {
                words(&source.shipped, keyword)
                    .map(move |at| name_behind(&source.shipped, at, keyword).to_owned())
            })
        });
        let mut folder = Self {
            sources,
            types: types.collect(),
            fields: BTreeMap::new(),
            functions: Vec::new(),
        };
        for file in 0..sources.len() {
            folder.read_fields(file);
            folder.read_functions(file);
        }
        for at in 0..folder.functions.len() {
            folder.read_variables(at);
        }
        folder
    }

    fn read_fields(&mut self, file: usize) {
        let code = &self.sources[file].shipped;
        for at in words(code, "struct") {
            let end = code[at..]
                .find(['{', ';'])
                .map_or(code.len(), |end| at + end);
            if code[end..].starts_with('{') {
                let of = name_behind(code, at, "struct");
                for (name, kind) in self.typed_names(&code[end + 1..closing(code, end)]) {
                    self.fields.insert((of.to_owned(), name), kind);
                }
            }
        }
    }

    /// Names with a colon and a type of the folder behind: fields, or arguments.
    fn typed_names(&self, text: &str) -> BTreeMap<String, String> {
        let mut names = BTreeMap::new();
        for (colon, _) in text.match_indices(": ") {
            let start = text[..colon].rfind(|c| !is_part(c)).map_or(0, |at| at + 1);
            let end = text[colon + 2..]
                .find([':', ';', '\n'])
                .map_or(text.len(), |end| colon + 2 + end);
            if let Some(kind) = self.type_in(&text[colon + 2..end]) {
                names.insert(text[start..colon].to_owned(), kind);
            }
        }
        names
    }

    /// The type of the folder in `Option<Rc<RefCell<Type>>>`.
    fn type_in(&self, text: &str) -> Option<String> {
        let mut words = text.split(|c| !is_part(c));
        let found = words.rfind(|word| self.types.contains(*word));
        found.map(str::to_owned)
    }

    fn read_functions(&mut self, file: usize) {
        let code = &self.sources[file].shipped;
        let blocks = impl_blocks(code);
        for at in words(code, "fn") {
            let name = name_behind(code, at, "fn");
            let Some(open) = code[at..].find('(').map(|open| at + open) else {
                continue;
            };
            let Some(start) = code[open..].find(['{', ';']).map(|start| open + start) else {
                continue;
            };
            let block = blocks
                .iter()
                .find(|(_, start, end)| (start..end).contains(&&at));
            if !name.is_empty() && code[start..].starts_with('{') {
                let of = block.map(|(of, _, _)| of.clone());
                let result = &code[closing(code, open)..start];
                let is_own = words(result, "Self").next().is_some();
                self.functions.push(Function {
                    file,
                    name: name.to_owned(),
                    variables: self.typed_names(&code[open..closing(code, open)]),
                    returns: if is_own {
                        of.clone()
                    } else {
                        self.type_in(result)
                    },
                    body: (start, closing(code, start)),
                    of,
                });
            }
        }
    }

    /// What `let name = …` and `let Some(name) = …` name.
    fn read_variables(&mut self, at: usize) {
        let function = &self.functions[at];
        let (start, end) = function.body;
        let body = &self.sources[function.file].shipped[start..end];
        for place in words(body, "let") {
            let Some((pattern, value)) = body[place + 3..].split_once('=') else {
                continue;
            };
            let pattern = pattern.trim().trim_end_matches(')');
            let pattern = pattern.rsplit(['(', ' ']).next().unwrap_or(pattern);
            let value = value.split([';', '{']).next().unwrap_or(value);
            let value = value.trim_end().trim_end_matches(" else");
            let value = value.trim_start().trim_start_matches(['&', '*']);
            let value = value.trim_start_matches("mut ");
            if let Some(kind) = self.receiver(&self.functions[at], value) {
                let variables = &mut self.functions[at].variables;
                variables.insert(pattern.to_owned(), kind);
            }
        }
    }

    /// The files that call each other, with the place of one call.
    fn calls(&self) -> BTreeMap<(usize, usize), String> {
        let mut calls = BTreeMap::new();
        for function in &self.functions {
            let source = &self.sources[function.file];
            let body = &source.shipped[..function.body.1];
            for (open, _) in body[function.body.0..].match_indices('(') {
                let open = function.body.0 + open;
                let Some(called) = self.called(function, &body[..open]) else {
                    continue;
                };
                if called.file != function.file {
                    let line = line_of(&source.shipped, open);
                    let place = format!("{}:{line} {}", source.path, called.name);
                    calls.entry((function.file, called.file)).or_insert(place);
                }
            }
        }
        calls
    }

    /// Which function of the folder is called by what stands before a bracket.
    fn called(&self, caller: &Function, before: &str) -> Option<&Function> {
        let name = last_name(before);
        let rest = before[..before.len() - name.len()].trim_end();
        if let Some(receiver) = rest.strip_suffix('.') {
            let of = self.receiver(caller, receiver)?;
            return self.method(&of, name);
        }
        let Some(path) = rest.strip_suffix("::") else {
            return self.by_name(caller, name);
        };
        match last_name(path) {
            "Self" => self.method(caller.of.as_ref()?, name),
            of if self.types.contains(of) => self.method(of, name),
            module => self.in_module(module, name),
        }
    }

    /// The type of `self.field[index].method()`, or of what begins with a variable instead.
    fn receiver(&self, caller: &Function, text: &str) -> Option<String> {
        let text = text.trim_end().trim_end_matches('?');
        if text.ends_with(']') {
            return self.receiver(caller, &text[..opening(text)]);
        }
        let is_call = text.ends_with(')');
        let text = if is_call {
            &text[..opening(text)]
        } else {
            text
        };
        let name = last_name(text);
        let rest = text[..text.len() - name.len()].trim_end();
        let Some(receiver) = rest.strip_suffix('.') else {
            return match name {
                "self" => caller.of.clone(),
                _ => caller.variables.get(name).cloned(),
            };
        };
        let of = self.receiver(caller, receiver)?;
        if !is_call {
            return self.fields.get(&(of, name.to_owned())).cloned();
        }
        // What the folder does not define hands out what it is called on: `borrow_mut()`, `as_mut()`.
        match self.method(&of, name) {
            Some(method) => method.returns.clone(),
            None => Some(of),
        }
    }

    fn method(&self, of: &str, name: &str) -> Option<&Function> {
        let mut functions = self.functions.iter();
        functions.find(|function| function.of.as_deref() == Some(of) && function.name == name)
    }

    fn in_module(&self, module: &str, name: &str) -> Option<&Function> {
        self.functions.iter().find(|function| {
            let path = self.sources[function.file].path.trim_end_matches(".rs");
            let path = path.trim_end_matches("/mod");
            function.of.is_none() && function.name == name && path.ends_with(&format!("/{module}"))
        })
    }

    /// A function of the caller's file, or the only one of this name.
    fn by_name(&self, caller: &Function, name: &str) -> Option<&Function> {
        let functions = self.functions.iter();
        let named: Vec<&Function> = functions
            .filter(|function| function.of.is_none() && function.name == name)
            .collect();
        let own = named.iter().find(|function| function.file == caller.file);
        match named[..] {
            [only] => Some(only),
            _ => own.copied(),
        }
    }
}

/// The types with an `impl` block, each with where the block begins and ends.
fn impl_blocks(code: &str) -> Vec<(String, usize, usize)> {
    let blocks = words(code, "impl").filter_map(|at| {
        let start = at + code[at..].find('{')?;
        let head = &code[at..start];
        if !code[..at].trim_end().ends_with(['}', ';', ']']) && !code[..at].trim().is_empty() {
            return None; // `impl Trait` in a signature
        }
        let of = head.rsplit(" for ").next().unwrap_or(head);
        let of = of
            .split('<')
            .find(|part| !part.trim().starts_with("impl") || part.contains(' '))?;
        let of = of.trim().trim_start_matches("impl ").trim();
        Some((identifier(of).to_owned(), start, closing(code, start)))
    });
    blocks.collect()
}

/// The name behind a keyword.
fn name_behind<'a>(code: &'a str, at: usize, keyword: &str) -> &'a str {
    identifier(code[at + keyword.len()..].trim_start())
}

/// The name at the end of `text`.
fn last_name(text: &str) -> &str {
    let start = text.rfind(|c| !is_part(c)).map_or(0, |at| {
        at + text[at..].chars().next().map_or(1, char::len_utf8)
    });
    &text[start..]
}

/// Where the bracket opens that `text` ends with.
fn opening(text: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices().rev() {
        match c {
            ')' | ']' | '}' => depth += 1,
            '(' | '[' | '{' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    0
}

/// The files that can be reached from themselves.
fn ring(folder: &Folder) -> BTreeMap<String, String> {
    let calls = folder.calls();
    let mut ring = BTreeMap::new();
    for ((from, to), place) in &calls {
        let mut reached = BTreeSet::from([*to]);
        let mut open = vec![*to];
        while let Some(file) = open.pop() {
            let next = calls.keys().filter(|(start, _)| *start == file);
            open.extend(next.map(|(_, end)| *end).filter(|end| reached.insert(*end)));
        }
        if reached.contains(from) {
            let name = folder.sources[*from].path.rsplit('/').next();
            ring.insert(name.unwrap_or_default().to_owned(), place.clone());
        }
    }
    ring
}

#[test]
fn the_calls_between_the_files_of_sessions_form_no_circle() {
    let sources = sources(FOLDER);
    let folder = Folder::new(&sources);
    let calls = folder.calls();
    assert!(calls.len() > 8, "only {} pairs of files found", calls.len());
    assert_only(
        "files that call each other in a circle",
        &ring(&folder),
        &[],
    );
}

#[test]
fn circles_of_calls_are_found() {
    let check = |texts: &[&str], expected: &[&str]| {
        let files = ["a.rs", "b.rs", "c.rs"].iter().zip(texts);
        let sources: Vec<Source> = files
            .map(|(name, text)| Source::new(&format!("{FOLDER}{name}"), text))
            .collect();
        let sources: Vec<&Source> = sources.iter().collect();
        let ring = ring(&Folder::new(&sources));
        assert_eq!(ring.keys().collect::<Vec<_>>(), expected, "{texts:?}");
    };
    let own = "pub struct S { t: RefCell<T>, n: u8 }\nimpl S { fn one(&self) { self.two(); } }";
    check(&[own, "impl S { fn two(&self) {} }"], &[]);
    check(
        &[own, "impl S { fn two(&self) { self\n.one() } }"],
        &["a.rs", "b.rs"],
    );
    check(
        &[
            own,
            "impl S { fn two(&self) { Self::three() } }",
            "impl S { fn three() { S::one() } }",
        ],
        &["a.rs", "b.rs", "c.rs"],
    );
    let fields = "struct T;\nimpl T { fn four(&self, s: &mut S) { s.one(); } }";
    check(
        &[
            &own.replace("self.two()", "self.t.borrow_mut().four(self)"),
            fields,
        ],
        &["a.rs", "b.rs"],
    );
    check(&[&own.replace("self.two()", "self.n.four()"), fields], &[]);
    let variable = |code: &str| own.replace("self.two()", code);
    let behind = "impl T { fn four(&self, s: &mut S) { s.one(); } }\nstruct T;";
    for call in [
        "let a = &mut self.t; a.four()",
        "if let Some(a) = self.t.get_mut(&x) { a.four() }",
        "self.t[n as usize].four()",
        "let a = self.find(1); a.four(); } fn find(&self, n: u8) -> Option<&T> {",
    ] {
        check(&[&variable(call), behind], &["a.rs", "b.rs"]);
    }
    check(&[&variable("let a = other(); a.four()"), behind], &[]);
    let functions = "pub fn five() { super::a::six(); }";
    check(&["pub fn six() { five() }", functions], &["a.rs", "b.rs"]);
    check(&["#[cfg(test)]\nfn six() { five() }", functions], &[]);
}
