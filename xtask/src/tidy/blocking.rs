//! Code that runs on the runtime's workers does not wait for a disk.
//!
//! A worker that waits for a disk holds up every task of its program: probes, reports, other VMs. So async code, and
//! functions that give a future, call what blocks only inside of the arguments of [`OFFLOADS`], or in a closure that a
//! thread is spawned for.
//!
//! The functions of all crates are read as tokens. One blocks when its body names the file system ([`is_direct`]) or calls
//! one that blocks. A call is matched by its name and the type, module or crate before it; a method by its name, where
//! every method of that name in the crate blocks. So a method that has the name of one that does not block is not seen:
//! give methods that block a name of their own. Tests are left out. A line with the comment `// blocks: why` on it or up
//! to two lines above it is excused.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::Source;
use super::rings::{
    end_of_statement, follows_path, group_of, is_cfg_test, is_parenthesis, is_punct, leaves, path,
};

/// A line with this comment may block.
const EXCUSE: &str = "// blocks: ";
/// Lines above a call in which the comment may be.
const EXCUSE_LINES: usize = 2;
/// Functions whose arguments run on a thread for blocking work.
const OFFLOADS: [&str; 5] = [
    "blocking",
    "blocking_io",
    "spawn_blocking",
    "in_turn",
    "within",
];
/// Methods of the standard library that ask the file system.
const METHODS: [&str; 14] = [
    "canonicalize",
    "exists",
    "is_dir",
    "is_file",
    "is_symlink",
    "open_receiver",
    "open_sender",
    "read_dir",
    "read_link",
    "set_permissions",
    "symlink_metadata",
    "sync_all",
    "sync_data",
    "try_exists",
];
/// Types whose functions ask the file system.
const TYPES: [&str; 4] = ["DirBuilder", "File", "NamedTempFile", "OpenOptions"];
/// Names of methods that collections and streams have as well.
const AMBIGUOUS: [&str; 19] = [
    "add", "append", "begin", "drop", "find", "flush", "get", "insert", "join", "keep", "kill",
    "list", "open", "put", "read", "remove", "start", "take", "write",
];
/// Crates whose async code is no service: a command of `platform` does one thing and ends (its roles are crates of their
/// own), the guest's init runs no other task beside the one that waits, and the simulation has no disk.
const EXEMPT: [&str; 4] = ["guest-init", "platform", "simulation", "xtask"];

/// A function of a crate.
#[derive(Debug)]
struct Function {
    /// Folder of its crate.
    folder: String,
    /// Its file, and the name of the file's module.
    file: String,
    module: String,
    /// The type whose `impl` it is in.
    of: Option<String>,
    name: String,
    /// Whether its own body runs on a worker: it is async, or gives a future.
    on_worker: bool,
    /// What it does outside of async blocks, and outside of [`OFFLOADS`].
    own: Vec<Step>,
    /// What it does in async blocks.
    in_async: Vec<Step>,
}

/// A call, or a use of the file system.
#[derive(Debug, Clone)]
struct Step {
    line: usize,
    /// Whether the comment [`EXCUSE`] is there.
    excused: bool,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    /// It asks the file system.
    Direct(String),
    /// A call of a function, by its last two words.
    Call(Option<String>, String),
    /// A call of a method.
    Method(String),
}

/// Finds async code that blocks.
///
/// # Errors
/// A file is not Rust.
pub(super) fn check(sources: &[Source], findings: &mut Vec<String>) -> Result<()> {
    let mut functions = Vec::new();
    let mut imports = BTreeMap::new();
    let mut test_files = Vec::new();
    for source in sources {
        let Some((folder, file)) = source.path.split_once("/src/") else {
            continue;
        };
        let is_test = file
            .split(['/', '.'])
            .any(|part| ["tests", "conformance", "fixtures", "bin"].contains(&part));
        if !source.path.ends_with(".rs") || is_test {
            continue;
        }
        let tokens: TokenStream = source
            .text
            .parse()
            .map_err(|error| anyhow!("{} is not Rust: {error}", source.path))?;
        let mut reader = Reader::new(folder, source);
        reader.read_items(tokens, None);
        functions.append(&mut reader.functions);
        test_files.append(&mut reader.test_files);
        imports.insert(source.path.clone(), reader.imports);
    }
    functions.retain(|function: &Function| {
        !test_files
            .iter()
            .any(|file| function.file.starts_with(file))
    });
    let program = Program::new(functions, imports);
    for function in &program.functions {
        let folder_name = function.folder.rsplit('/').next().unwrap_or_default();
        if EXEMPT.contains(&folder_name) {
            continue;
        }
        let own = function.own.iter().filter(|_| function.on_worker);
        for step in own.chain(&function.in_async) {
            let Some(reason) = program.reason(function, &step.what) else {
                continue;
            };
            if !step.excused {
                findings.push(format!(
                    "{}:{}: `{}` runs on a worker and waits for a disk: {reason}",
                    function.file, step.line, function.name
                ));
            }
        }
    }
    Ok(())
}

/// All functions, and which of them block.
struct Program {
    functions: Vec<Function>,
    by_name: BTreeMap<String, Vec<usize>>,
    /// File to what it imports: the name there, and the path.
    imports: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// Function to why it blocks.
    blocking: BTreeMap<usize, String>,
}

impl Program {
    fn new(
        functions: Vec<Function>,
        imports: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    ) -> Self {
        let mut by_name: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, function) in functions.iter().enumerate() {
            by_name
                .entry(function.name.clone())
                .or_default()
                .push(index);
        }
        let mut program = Self {
            functions,
            by_name,
            imports,
            blocking: BTreeMap::new(),
        };
        loop {
            let found: BTreeMap<usize, String> = program
                .functions
                .iter()
                .enumerate()
                .filter(|(index, function)| {
                    !function.on_worker && !program.blocking.contains_key(index)
                })
                .filter_map(|(index, function)| {
                    let mut reasons = function.own.iter().filter(|step| !step.excused);
                    let reason = reasons.find_map(|step| program.reason(function, &step.what))?;
                    Some((index, reason))
                })
                .collect();
            if found.is_empty() {
                return program;
            }
            program.blocking.extend(found);
        }
    }

    /// Why a step of a function blocks, if it does.
    fn reason(&self, from: &Function, what: &What) -> Option<String> {
        match what {
            What::Direct(path) => Some(format!("`{path}`")),
            What::Call(before, name) => {
                let called = self.called(from, before.as_deref(), name);
                let index = called
                    .iter()
                    .find(|index| self.blocking.contains_key(index))?;
                Some(self.named(*index))
            }
            What::Method(name) if AMBIGUOUS.contains(&name.as_str()) => None,
            What::Method(name) => {
                // A method of the crate; or, where the crate has none of that name, of another.
                let own = self.by_name.get(name)?.iter().any(|index| {
                    let function = &self.functions[*index];
                    function.of.is_some() && function.folder == from.folder
                });
                let mut named = self.by_name.get(name)?.iter().filter(|index| {
                    let function = &self.functions[**index];
                    function.of.is_some() && (function.folder == from.folder) == own
                });
                let first = *named.next()?;
                let all = self.blocking.contains_key(&first)
                    && named.all(|index| self.blocking.contains_key(index));
                all.then(|| self.named(first))
            }
        }
    }

    fn named(&self, index: usize) -> String {
        let function = &self.functions[index];
        let reason = &self.blocking[&index];
        // The whole chain would be long: the next call is enough to go on from.
        let reason = reason.split(", by ").next().unwrap_or_default();
        format!("`{}`, by {reason}", function.name)
    }

    /// The functions that a call may be of.
    fn called(&self, from: &Function, before: Option<&str>, name: &str) -> Vec<usize> {
        let Some(named) = self.by_name.get(name) else {
            return Vec::new();
        };
        let matching = |qualifier: &str| -> Vec<usize> {
            let all: Vec<usize> = named
                .iter()
                .copied()
                .filter(|index| {
                    let function = &self.functions[*index];
                    match &function.of {
                        Some(of) => of == qualifier,
                        None => {
                            function.module == qualifier
                                || crate_name(&function.folder) == qualifier
                        }
                    }
                })
                .collect();
            let own: Vec<usize> = all
                .iter()
                .copied()
                .filter(|index| self.functions[*index].folder == from.folder)
                .collect();
            if own.is_empty() { all } else { own }
        };
        match before {
            Some("Self") => from.of.as_deref().map(matching).unwrap_or_default(),
            Some("self" | "crate" | "super") => {
                let own = named.iter().copied().filter(|index| {
                    let function = &self.functions[*index];
                    function.of.is_none() && function.folder == from.folder
                });
                own.collect()
            }
            None => {
                let here = named.iter().copied().filter(|index| {
                    let function = &self.functions[*index];
                    function.of.is_none() && function.file == from.file
                });
                let here: Vec<usize> = here.collect();
                if !here.is_empty() {
                    return here;
                }
                let import = self
                    .imports
                    .get(&from.file)
                    .and_then(|imports| imports.get(name));
                match import.map(Vec::as_slice) {
                    Some([.., qualifier, _]) if qualifier == "crate" => {
                        matching(&crate_name(&from.folder))
                    }
                    Some([.., qualifier, _]) => matching(qualifier),
                    _ => Vec::new(),
                }
            }
            Some(qualifier) => matching(qualifier),
        }
    }
}

fn crate_name(folder: &str) -> String {
    folder
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .replace('-', "_")
}

/// Reads the functions of one file.
struct Reader<'a> {
    folder: &'a str,
    source: &'a Source,
    functions: Vec<Function>,
    imports: BTreeMap<String, Vec<String>>,
    /// How the paths of files begin that only tests have.
    test_files: Vec<String>,
    /// Names that stand for tokio's: its file system does not block.
    of_tokio: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    fn new(folder: &'a str, source: &'a Source) -> Self {
        Self {
            folder,
            source,
            functions: Vec::new(),
            imports: BTreeMap::new(),
            test_files: Vec::new(),
            of_tokio: BTreeSet::new(),
        }
    }

    /// Reads the items of a module or an `impl` of a type.
    fn read_items(&mut self, tokens: TokenStream, of: Option<&str>) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        let mut only_tests = false;
        let mut is_async = false;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Punct(punct) if punct.as_char() == '#' => {
                    only_tests |= tokens.get(at + 1).is_some_and(is_cfg_test);
                    at += 1;
                }
                TokenTree::Punct(punct) if punct.as_char() == ';' => {
                    (only_tests, is_async) = (false, false);
                }
                TokenTree::Ident(word) if word == "async" => is_async = true,
                TokenTree::Ident(word) if word == "use" => {
                    let end = end_of_statement(&tokens, at);
                    for (path, alias) in leaves(&tokens[at + 1..end]) {
                        if path.first().is_some_and(|first| first == "tokio") {
                            self.of_tokio.insert(alias.clone());
                        }
                        self.imports.insert(alias, path);
                    }
                    at = end;
                }
                TokenTree::Ident(word) if word == "impl" || word == "mod" || word == "trait" => {
                    let end = end_of_item(&tokens, at);
                    if let Some(body) = tokens.get(end).and_then(group_of) {
                        let head = &tokens[at + 1..end];
                        let of = if word == "impl" {
                            implemented(head)
                        } else {
                            None
                        };
                        if !only_tests {
                            self.read_items(body.stream(), of.as_deref());
                        }
                    }
                    if let (true, Some(TokenTree::Ident(name))) = (only_tests, tokens.get(at + 1)) {
                        self.test_files
                            .extend(self.file_of_module(&name.to_string()));
                    }
                    at = end;
                    only_tests = false;
                }
                TokenTree::Ident(word) if word == "fn" => {
                    let end = end_of_item(&tokens, at);
                    if let (Some(TokenTree::Ident(name)), Some(body)) =
                        (tokens.get(at + 1), tokens.get(end).and_then(group_of))
                        && !only_tests
                    {
                        let head = tokens[at..end].iter();
                        let words: BTreeSet<String> = head.filter_map(ident).collect();
                        let gives_future = ["BoxFuture", "Future", "Answer"];
                        let on_worker =
                            is_async || gives_future.iter().any(|word| words.contains(*word));
                        self.read_function(&name.to_string(), of, on_worker, body.stream());
                    }
                    at = end;
                    (only_tests, is_async) = (false, false);
                }
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    (only_tests, is_async) = (false, false);
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// How the path of a submodule's file begins, in either of its two places.
    fn file_of_module(&self, name: &str) -> [String; 2] {
        let path = &self.source.path;
        let (folder, file) = path.rsplit_once('/').unwrap_or_default();
        let folder = match file {
            "lib.rs" | "main.rs" | "mod.rs" => folder,
            _ => path.trim_end_matches(".rs"),
        };
        [format!("{folder}/{name}.rs"), format!("{folder}/{name}/")]
    }

    fn read_function(&mut self, name: &str, of: Option<&str>, on_worker: bool, body: TokenStream) {
        let file = self.source.path.rsplit('/').next().unwrap_or_default();
        let mut module = file.strip_suffix(".rs").unwrap_or(file);
        if module == "mod" {
            module = self.source.path.rsplit('/').nth(1).unwrap_or_default();
        }
        let mut function = Function {
            folder: self.folder.to_owned(),
            file: self.source.path.clone(),
            module: module.to_owned(),
            of: of.map(str::to_owned),
            name: name.to_owned(),
            on_worker,
            own: Vec::new(),
            in_async: Vec::new(),
        };
        self.read_body(body, false, &mut function);
        self.functions.push(function);
    }

    fn read_body(&self, tokens: TokenStream, in_async: bool, function: &mut Function) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Punct(punct) if punct.as_char() == '#' => {
                    at += usize::from(tokens.get(at + 1).and_then(group_of).is_some());
                }
                TokenTree::Ident(word) if word == "async" => {
                    let block = async_block(&tokens, at);
                    if let Some(body) = tokens.get(block).and_then(group_of) {
                        self.read_body(body.stream(), true, function);
                        at = block;
                    }
                }
                TokenTree::Ident(word) => {
                    let line = word.span().start().line;
                    let (path, length) = path(&tokens[at..]);
                    let is_method = at > 0 && is_punct(&tokens[at - 1], '.');
                    let end = at + length.max(1);
                    let call = tokens
                        .get(end)
                        .and_then(group_of)
                        .filter(|g| is_parenthesis(g));
                    let last = path.last().cloned().unwrap_or_default();
                    let thread = last == "spawn" && call.is_some_and(|g| is_closure(g.stream()));
                    if call.is_some() && (OFFLOADS.contains(&last.as_str()) || thread) {
                        at = end + 1;
                        continue;
                    }
                    let before = path.len().checked_sub(2).map(|index| path[index].clone());
                    let what = if is_method {
                        let direct = METHODS.contains(&last.as_str());
                        match call {
                            Some(_) if direct => Some(What::Direct(format!(".{last}()"))),
                            Some(_) => Some(What::Method(last)),
                            None => None,
                        }
                    } else if follows_path(&tokens, at) {
                        None
                    } else if self.is_direct(&path) {
                        Some(What::Direct(path.join("::")))
                    } else {
                        // A function may also be given by its name.
                        (call.is_some() || before.is_some()).then_some(What::Call(before, last))
                    };
                    let steps = if in_async {
                        &mut function.in_async
                    } else {
                        &mut function.own
                    };
                    let excused = self.is_excused(line);
                    steps.extend(what.map(|what| Step {
                        line,
                        excused,
                        what,
                    }));
                    at = end - 1;
                }
                TokenTree::Group(group) => self.read_body(group.stream(), in_async, function),
                _ => {}
            }
            at += 1;
        }
    }

    fn is_excused(&self, line: usize) -> bool {
        let first = line.saturating_sub(EXCUSE_LINES + 1);
        let mut lines = self.source.text.lines().skip(first).take(line - first);
        lines.any(|line| line.contains(EXCUSE))
    }

    /// Whether a path names a function that asks the file system.
    fn is_direct(&self, path: &[String]) -> bool {
        let [.., before, last] = path else {
            return false;
        };
        let first = &path[0];
        // `File::from` opens nothing.
        if first == "tokio"
            || last == "from"
            || self.of_tokio.contains(first)
            || !last.starts_with(char::is_lowercase)
        {
            return false;
        }
        let of_rustix = first == "rustix";
        (before == "fs" && !of_rustix)
            || (of_rustix && matches!(last.as_str(), "statfs" | "statvfs" | "fsync"))
            || TYPES.contains(&before.as_str())
    }
}

/// Where the body of an item is, or its semicolon.
fn end_of_item(tokens: &[TokenTree], from: usize) -> usize {
    let is_end = |token: &TokenTree| {
        is_punct(token, ';')
            || group_of(token).is_some_and(|group| group.delimiter() == Delimiter::Brace)
    };
    let length = tokens[from..]
        .iter()
        .take_while(|token| !is_end(token))
        .count();
    from + length
}

/// The type of an `impl`, from what is between that word and the body.
fn implemented(head: &[TokenTree]) -> Option<String> {
    let after_for = head
        .iter()
        .rposition(|token| ident(token).is_some_and(|word| word == "for"));
    let head = &head[after_for.map_or(0, |at| at + 1)..];
    // `<T: Bound> a::Type<T> where ..`: the last word before the type's own parameters.
    let mut depth = 0_i32;
    let mut found = None;
    for token in head {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == '<' => depth += 1,
            TokenTree::Punct(punct) if punct.as_char() == '>' => depth -= 1,
            TokenTree::Ident(word) if word == "where" => break,
            TokenTree::Ident(word) if depth == 0 => found = Some(word.to_string()),
            _ => {}
        }
    }
    found
}

/// Where the block of `async {`, `async move {` or `async |x| {` is; `from` itself where there is none.
fn async_block(tokens: &[TokenTree], from: usize) -> usize {
    let mut at = from + 1;
    if tokens
        .get(at)
        .and_then(ident)
        .is_some_and(|word| word == "move")
    {
        at += 1;
    }
    if tokens.get(at).is_some_and(|token| is_punct(token, '|')) {
        at = end_of_item(tokens, at);
    }
    match tokens.get(at).and_then(group_of) {
        Some(group) if group.delimiter() == Delimiter::Brace => at,
        _ => from,
    }
}

fn is_closure(arguments: TokenStream) -> bool {
    let first: Vec<TokenTree> = arguments.into_iter().take(2).collect();
    match first.as_slice() {
        [first, ..] if is_punct(first, '|') => true,
        [first, second] => ident(first).is_some_and(|word| word == "move") && is_punct(second, '|'),
        _ => false,
    }
}

fn ident(token: &TokenTree) -> Option<String> {
    match token {
        TokenTree::Ident(word) => Some(word.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<_> = files
            .iter()
            .map(|(path, text)| Source {
                path: (*path).to_owned(),
                text: (*text).to_owned(),
            })
            .collect();
        let mut findings = Vec::new();
        assert!(check(&sources, &mut findings).is_ok());
        findings
    }

    fn in_lib(text: &str) -> Vec<String> {
        findings(&[("crates/a/src/lib.rs", text)])
    }

    const FINDING: &str =
        "crates/a/src/lib.rs:1: `f` runs on a worker and waits for a disk: `std::fs::read`";

    #[test]
    fn async_code_that_names_the_file_system_is_a_finding() {
        assert_eq!(in_lib("async fn f() { std::fs::read(a); }"), [FINDING]);
        assert_eq!(
            in_lib("fn f() { g(async move { std::fs::read(a); }) }"),
            [FINDING]
        );
        assert_eq!(
            in_lib("fn f() { g(async |x| { std::fs::read(a); }) }"),
            [FINDING]
        );
        assert_eq!(
            in_lib("fn f() -> BoxFuture<'_, ()> { std::fs::read(a); }"),
            [FINDING]
        );
        for fine in [
            "fn f() { std::fs::read(a); }",
            "async fn f() { tokio::fs::read(a).await }",
            "use tokio::fs; async fn f() { fs::read(a).await }",
            "async fn f(file: std::fs::File) {}",
            "#[cfg(test)] mod tests { async fn f() { std::fs::read(a); } }",
        ] {
            assert_eq!(in_lib(fine), [""; 0], "{fine}");
        }
    }

    #[test]
    fn work_on_a_thread_for_blocking_work_is_none() {
        for fine in [
            "async fn f() { blocking(move || std::fs::read(a)).await }",
            "async fn f() { tokio::task::spawn_blocking(move || std::fs::read(a)).await }",
            "async fn f() { std::thread::spawn(move || std::fs::read(a)); }",
        ] {
            assert_eq!(in_lib(fine), [""; 0], "{fine}");
        }
        assert_eq!(
            in_lib("async fn f() { tokio::spawn(async move { std::fs::read(a) }); }"),
            [FINDING]
        );
    }

    #[test]
    fn what_calls_a_blocking_function_blocks() {
        let one = (
            "crates/a/src/lib.rs",
            "mod b; use b::C; async fn f() { C::g(1); b::h(); c.look_up_file() }",
        );
        let two = (
            "crates/a/src/b.rs",
            "impl C { fn g() { h() } fn look_up_file(&self) { Self::g() } } fn h() { File::open(x) }",
        );
        let text = "crates/a/src/lib.rs:1: `f` runs on a worker and waits for a disk: ";
        assert_eq!(
            findings(&[one, two]),
            [
                format!("{text}`g`, by `h`"),
                format!("{text}`h`, by `File::open`"),
                format!("{text}`look_up_file`, by `g`"),
            ]
        );
    }

    #[test]
    fn a_blocking_function_of_another_crate_is_found_by_its_crate_its_type_and_its_import() {
        let other = (
            "crates/state-file/src/lib.rs",
            "pub fn read() { std::fs::read(x) } impl Store { fn load() { read() } }",
        );
        for call in ["state_file::read()", "Store::load()"] {
            let text = format!("async fn f() {{ {call} }}");
            let found = findings(&[("crates/a/src/lib.rs", &text), other]);
            assert_eq!(found.len(), 1, "{call}: {found:?}");
        }
        let text = "use state_file::read; async fn f() { read() }";
        assert_eq!(findings(&[("crates/a/src/lib.rs", text), other]).len(), 1);
        let text = "fn read() {} async fn f() { read() }";
        assert_eq!(findings(&[("crates/a/src/lib.rs", text), other]), [""; 0]);
    }

    #[test]
    fn a_method_with_the_name_of_one_that_does_not_block_and_an_excused_line_are_not_findings() {
        let text = "impl A { fn g(&self) { File::open(x) } } impl B { fn g(&self) {} } async fn f() { a.g() }";
        assert_eq!(in_lib(text), [""; 0]);
        let text =
            "async fn f() {\n    // blocks: before anything else runs\n    std::fs::read(a);\n}";
        assert_eq!(in_lib(text), [""; 0]);
    }
}
