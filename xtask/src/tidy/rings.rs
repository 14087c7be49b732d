//! Files of one crate do not import each other in a ring: each can be read after those it imports.
//!
//! The files of a crate's `src` are read as tokens, so comments and texts do not count, and macros do. A path that begins with
//! `crate`, `super`, `self` or the name of a submodule is an import of the file that defines what it names;
//! a re-export (`pub use`) is followed to that file. A submodule that imports from the modules around it makes no ring
//! with them: they declare it, and are read with it. Code under `#[cfg(test)]` is left out. A file with the comment
//! `// ring: why` is left out too.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use super::Source;

/// A file with this comment may be part of a ring.
const EXCUSE: &str = "// ring: ";
/// Re-exports of re-exports that are followed.
const MAX_REEXPORTS: usize = 8;

/// The path of a module, from the crate's root: `["api", "deploy"]`.
type Module = Vec<String>;

/// Finds the rings of every crate.
///
/// # Errors
/// A file is not Rust.
pub(super) fn check(sources: &[Source], findings: &mut Vec<String>) -> Result<()> {
    let mut crates: BTreeMap<&str, Vec<&Source>> = BTreeMap::new();
    for source in sources {
        if let Some((folder, _)) = source.path.split_once("/src/")
            && source.path.ends_with(".rs")
        {
            crates.entry(folder).or_default().push(source);
        }
    }
    for (folder, files) in crates {
        for ring in rings(&graph(folder, &files)?) {
            findings.push(format!(
                "{folder}: these files import each other in a ring: {}",
                ring.join(", ")
            ));
        }
    }
    Ok(())
}

/// What one file says.
#[derive(Debug, Default)]
struct File {
    path: String,
    /// Paths that its code names, from the crate's root.
    named: BTreeSet<Module>,
    /// What it re-exports: the name, and the path of the item.
    exported: BTreeMap<String, Module>,
    /// Submodules that only tests have.
    test_modules: BTreeSet<String>,
    excused: bool,
}

/// File to the files that it imports.
fn graph(folder: &str, sources: &[&Source]) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let module_of = |source: &Source| module(&source.path[folder.len() + "/src/".len()..]);
    let modules: BTreeSet<Module> = sources.iter().map(|source| module_of(source)).collect();
    let mut files: BTreeMap<Module, File> = BTreeMap::new();
    for source in sources {
        let tokens: TokenStream = source
            .text
            .parse()
            .map_err(|error| anyhow!("{} is not Rust: {error}", source.path))?;
        let module = module_of(source);
        let mut reader = Reader {
            modules: &modules,
            file: File {
                path: source.path.clone(),
                excused: source.text.contains(EXCUSE),
                ..File::default()
            },
        };
        reader.read(tokens, &module);
        // The root of a binary beside a library is a crate of its own, with the library's modules in no ring.
        files.entry(module).or_insert(reader.file);
    }
    let in_tests = |module: &Module| {
        (0..module.len()).any(|depth| {
            let parent = files.get(&module[..depth]);
            parent.is_some_and(|parent| parent.test_modules.contains(&module[depth]))
        })
    };
    let counts = |module: &Module| !files[module].excused && !in_tests(module);
    let mut graph = BTreeMap::new();
    for (module, file) in files.iter().filter(|(module, _)| counts(module)) {
        let imports = file
            .named
            .iter()
            .filter_map(|path| home(&files, path, 0))
            .filter(|home| !module.starts_with(home) && counts(home))
            .map(|home| files[&home].path.clone())
            .collect();
        graph.insert(file.path.clone(), imports);
    }
    Ok(graph)
}

/// `api/deploy.rs` and `api/deploy/mod.rs` -> `api::deploy`; the crate's root is empty.
fn module(file: &str) -> Module {
    let stem = file.strip_suffix(".rs").unwrap_or(file);
    let mut module: Module = stem.split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| last == "mod") || matches!(stem, "lib" | "main") {
        module.pop();
    }
    module
}

/// The module whose file defines what the path names.
fn home(files: &BTreeMap<Module, File>, path: &[String], followed: usize) -> Option<Module> {
    let depth = (0..=path.len())
        .rev()
        .find(|depth| files.contains_key(&path[..*depth]))?;
    let (module, rest) = path.split_at(depth);
    let file = &files[module];
    if followed < MAX_REEXPORTS
        && let Some(name) = rest.first()
        && let Some(target) = file.exported.get(name)
    {
        return home(files, target, followed + 1);
    }
    Some(module.to_vec())
}

/// Reads the tokens of one file.
struct Reader<'a> {
    modules: &'a BTreeSet<Module>,
    file: File,
}

impl Reader<'_> {
    /// Reads the tokens of a module: the file's own, or one inside it.
    fn read(&mut self, tokens: TokenStream, module: &[String]) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        let mut only_tests = false;
        let mut public = false;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Punct(punct) if punct.as_char() == '#' => {
                    only_tests |= tokens.get(at + 1).is_some_and(is_cfg_test);
                    // An attribute names no module.
                    at += 1;
                }
                TokenTree::Ident(word) if word == "pub" => {
                    public = true;
                    let restricted = tokens.get(at + 1).and_then(group_of);
                    at += usize::from(restricted.is_some_and(is_parenthesis));
                }
                TokenTree::Ident(word) if word == "mod" => {
                    at += self.read_module(&tokens[at..], module, only_tests);
                    (only_tests, public) = (false, false);
                }
                TokenTree::Ident(word) if word == "use" => {
                    let end = end_of_statement(&tokens, at);
                    if !only_tests {
                        self.read_use(&tokens[at + 1..end], module, public);
                    }
                    at = end;
                    (only_tests, public) = (false, false);
                }
                TokenTree::Ident(_) => {
                    let (path, length) = path(&tokens[at..]);
                    if length > 1 && !follows_path(&tokens, at) && !only_tests {
                        self.name(module, &path);
                    }
                    at += length.saturating_sub(1);
                }
                TokenTree::Group(group) => {
                    if !only_tests {
                        self.read(group.stream(), module);
                    }
                    if group.delimiter() == Delimiter::Brace {
                        (only_tests, public) = (false, false);
                    }
                }
                TokenTree::Punct(punct) if punct.as_char() == ';' => {
                    (only_tests, public) = (false, false);
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// Reads `mod name;` or `mod name { .. }`; returns how many tokens follow `mod`.
    fn read_module(&mut self, tokens: &[TokenTree], module: &[String], only_tests: bool) -> usize {
        let Some(TokenTree::Ident(name)) = tokens.get(1) else {
            return 0;
        };
        let name = name.to_string();
        match tokens.get(2).and_then(group_of) {
            Some(body) => {
                if !only_tests {
                    let inner: Module = module.iter().cloned().chain([name]).collect();
                    self.read(body.stream(), &inner);
                }
                2
            }
            None => {
                if only_tests {
                    self.file.test_modules.insert(name);
                }
                1
            }
        }
    }

    /// Reads the tree of a `use`.
    fn read_use(&mut self, tree: &[TokenTree], module: &[String], public: bool) {
        for (path, alias) in leaves(tree) {
            let Some(full) = self.absolute(module, &path) else {
                continue;
            };
            if public {
                self.file.exported.insert(alias, full);
            } else {
                self.file.named.insert(full);
            }
        }
    }

    fn name(&mut self, module: &[String], path: &[String]) {
        if let Some(full) = self.absolute(module, path) {
            self.file.named.insert(full);
        }
    }

    /// The path from the crate's root; nothing where it leads out of the crate.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Module> {
        let mut base = module.to_vec();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => {
                base.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {}
            name => {
                let child: Module = module.iter().cloned().chain([name.to_owned()]).collect();
                if !self.modules.contains(&child) {
                    return None;
                }
            }
        }
        while rest.first().is_some_and(|word| word == "super") {
            base.pop();
            rest = &rest[1..];
        }
        base.extend(rest.iter().cloned());
        Some(base)
    }
}

/// The path that the tokens begin with, and how many tokens it is: `a::b` is four.
pub(super) fn path(tokens: &[TokenTree]) -> (Vec<String>, usize) {
    let mut path = Vec::new();
    let mut at = 0;
    while let Some(TokenTree::Ident(word)) = tokens.get(at) {
        path.push(word.to_string());
        at += 1;
        if !is_path_separator(tokens, at) {
            break;
        }
        at += 2;
    }
    (path, at)
}

/// Whether the token is behind `::` or `.`, so that it begins no path.
pub(super) fn follows_path(tokens: &[TokenTree], at: usize) -> bool {
    let before = at.checked_sub(1).and_then(|before| tokens.get(before));
    matches!(before, Some(TokenTree::Punct(punct)) if matches!(punct.as_char(), '.' | ':'))
        && (at < 2 || is_path_separator(tokens, at - 2) || is_punct(&tokens[at - 1], '.'))
}

fn is_path_separator(tokens: &[TokenTree], at: usize) -> bool {
    matches!(tokens.get(at..at + 2), Some([a, b]) if is_punct(a, ':') && is_punct(b, ':'))
}

pub(super) fn is_punct(token: &TokenTree, c: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == c)
}

pub(super) fn group_of(token: &TokenTree) -> Option<&Group> {
    match token {
        TokenTree::Group(group) => Some(group),
        _ => None,
    }
}

pub(super) fn is_parenthesis(group: &Group) -> bool {
    group.delimiter() == Delimiter::Parenthesis
}

pub(super) fn is_cfg_test(token: &TokenTree) -> bool {
    let text = token.to_string().replace(' ', "");
    text.starts_with("[cfg(test)") || text.starts_with("[cfg(all(test")
}

pub(super) fn end_of_statement(tokens: &[TokenTree], from: usize) -> usize {
    let rest = tokens[from..].iter();
    let length = rest.take_while(|token| !is_punct(token, ';')).count();
    from + length
}

/// Every path of a `use` tree, with the name that it is known by.
pub(super) fn leaves(tree: &[TokenTree]) -> Vec<(Vec<String>, String)> {
    let (prefix, length) = path(tree);
    let rest = &tree[length..];
    if let Some(group) = rest.first().and_then(group_of) {
        let inner: Vec<TokenTree> = group.stream().into_iter().collect();
        return inner
            .split(|token| is_punct(token, ','))
            .filter(|branch| !branch.is_empty())
            .flat_map(leaves)
            .map(|(path, alias)| {
                let path = prefix.iter().cloned().chain(path);
                // `a::{self}` is `a`.
                (path.collect::<Vec<_>>(), alias)
            })
            .map(|(mut path, alias)| {
                if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
                    path.pop();
                }
                (path, alias)
            })
            .collect();
    }
    let alias = match rest {
        [TokenTree::Ident(r#as), TokenTree::Ident(alias), ..] if r#as == "as" => alias.to_string(),
        _ => prefix.last().cloned().unwrap_or_default(),
    };
    vec![(prefix, alias)]
}

/// The sets of files that reach each other.
fn rings(graph: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> = graph
        .keys()
        .map(|from| {
            let mut reached = BTreeSet::new();
            let mut next = vec![from];
            while let Some(file) = next.pop() {
                let imports = graph.get(file).into_iter().flatten();
                next.extend(imports.filter(|import| reached.insert(*import)));
            }
            (from, reached)
        })
        .collect();
    let mut rings = BTreeSet::new();
    for (file, others) in &reached {
        let ring: Vec<String> = others
            .iter()
            .filter(|other| reached.get(*other).is_some_and(|back| back.contains(file)))
            .map(|other| (*other).clone())
            .collect();
        if ring.len() > 1 {
            rings.insert(ring);
        }
    }
    rings.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<_> = files
            .iter()
            .map(|(path, text)| Source {
                path: format!("crates/a/src/{path}"),
                text: (*text).to_owned(),
            })
            .collect();
        let mut findings = Vec::new();
        assert!(check(&sources, &mut findings).is_ok());
        findings
    }

    const LIB: (&str, &str) = (
        "lib.rs",
        "mod b; mod c; pub use b::B; pub use c::{C, inner::D as E};",
    );
    const INNER: (&str, &str) = ("c/inner.rs", "pub struct D;");
    const RING: &str =
        "crates/a: these files import each other in a ring: crates/a/src/b.rs, crates/a/src/c.rs";

    #[test]
    fn two_files_that_name_each_other_are_a_ring() {
        let b = ("b.rs", "use crate::c::C; pub struct B;");
        let c = ("c.rs", "mod inner; pub struct C; fn f() { g(super::b::B) }");
        assert_eq!(findings(&[LIB, b, c, INNER]), [RING]);
    }

    #[test]
    fn a_submodule_may_import_from_the_modules_around_it() {
        let b = ("b.rs", "pub struct B;");
        let c = ("c.rs", "mod inner; use inner::D; pub struct C;");
        let inner = (
            "c/inner.rs",
            "use super::C; use crate::LIMIT; pub struct D;",
        );
        let lib = ("lib.rs", "mod b; mod c; use c::C; const LIMIT: u8 = 1;");
        assert_eq!(findings(&[lib, b, c, inner]), [""; 0]);
    }

    #[test]
    fn a_re_export_is_followed_to_the_file_that_defines_the_item() {
        let b = ("b.rs", "use crate::{C, E}; pub struct B;");
        let c = ("c.rs", "mod inner; pub struct C(pub Vec<crate::B>);");
        assert_eq!(findings(&[LIB, b, c, INNER]), [RING]);
        let b = ("b.rs", "use crate::E; pub struct B;");
        assert_eq!(findings(&[LIB, b, c, INNER]), [""; 0]);
    }

    #[test]
    fn a_name_inside_a_macro_counts_and_one_in_a_text_or_a_comment_does_not() {
        let b = ("b.rs", "fn f() { println!(\"{}\", crate::c::C) }");
        let c = ("c.rs", "mod inner; fn g() { h!(crate::b::B) }");
        assert_eq!(findings(&[LIB, b, c, INNER]), [RING]);
        let b = (
            "b.rs",
            "/* crate::c::C */ fn f() { println!(\"crate::c::C\") }",
        );
        assert_eq!(findings(&[LIB, b, c, INNER]), [""; 0]);
    }

    #[test]
    fn tests_and_excused_files_make_no_ring() {
        let c = ("c.rs", "mod inner; use crate::b::B;");
        let tests =
            "pub struct B; #[cfg(test)] mod tests { use crate::c::C; fn f() { crate::c::g() } }";
        assert_eq!(findings(&[LIB, ("b.rs", tests), c, INNER]), [""; 0]);
        let module = ("b.rs", "#[cfg(test)] mod tests; pub struct B;");
        let its_file = ("b/tests.rs", "use crate::c::C; use super::B;");
        assert_eq!(findings(&[LIB, module, its_file, c, INNER]), [""; 0]);
        let excused = (
            "b.rs",
            "// ring: both halves of one codec\nuse crate::c::C;",
        );
        assert_eq!(findings(&[LIB, excused, c, INNER]), [""; 0]);
    }
}
