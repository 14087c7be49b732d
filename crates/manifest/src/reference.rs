//! The reference page, `docs/manifest.md`, from the schema: it cannot tell another story than the
//! decoder.

use serde_json::Value;

use crate::authored;
use crate::diagnostic::{Code, MAX_DIAGNOSTICS};
use crate::schema::{At, Shape};
use crate::structure::inline;
use crate::syntax::{MAX_DEPTH, MAX_TEXT_BYTES};

/// A manifest with every key in it.
pub(crate) const EXAMPLE: &str = include_str!("example.toml");

/// The page as Markdown. A test holds `docs/manifest.md` against it.
pub fn reference_page() -> String {
    let shape = Shape::get();
    let mut page = Page {
        out: String::new(),
        sections: Vec::new(),
        formats: Vec::new(),
    };
    page.line("<!-- Made from the types in crates/manifest/src/authored.rs; to make it again:");
    page.line("     UPDATE_EXPECT=1 cargo test --release -p manifest the_page -->");
    page.line("");
    page.line("# The manifest");
    page.line("");
    page.line(INTRODUCTION);
    page.line("```toml");
    page.line(EXAMPLE.trim_end());
    page.line("```");
    page.line("");
    page.section(TOP, shape.root());
    // A section names the ones below it; they follow it at once.
    while let Some((title, schema)) = page.sections.pop() {
        page.section(&title, schema);
    }
    page.forms();
    page.limits();
    page.codes();
    page.out.truncate(page.out.trim_end().len());
    page.out.push('\n');
    page.out
}

const INTRODUCTION: &str = "\
An app is an OCI image and a manifest (ADR 0002). The manifest is a TOML 1.0 file, by default
`platform.toml`. It cannot be wrong silently: an unknown key is an error at every level.

- `platform validate` names every mistake at once, with its line, its path and a hint.
- `platform fmt` writes keys in the order of this page, in one layout, and keeps comments.
- `platform normalize` prints canonical JSON (RFC 8785) with every default filled in; equal
  manifests give equal bytes.
- `platform schema` prints the JSON Schema (2020-12), for editors.

Every key there is:
";

/// More choices than this are listed apart.
const FEW: usize = 8;
/// The title of the first section.
const TOP: &str = "Top level";

struct Page<'s> {
    out: String,
    /// Tables still to be described, with their headers.
    sections: Vec<(String, At<'s>)>,
    /// Forms of texts that were mentioned.
    formats: Vec<(&'s str, At<'s>)>,
}

impl<'s> Page<'s> {
    fn line(&mut self, line: &str) {
        self.out.push_str(line);
        self.out.push('\n');
    }

    fn section(&mut self, title: &str, at: At<'s>) {
        self.line(&format!("## {title}"));
        self.line("");
        if title != TOP {
            self.line(at.type_description());
            self.line("");
        }
        let mark = self.sections.len();
        self.line("| Key | Value | Default | Meaning |");
        self.line("|---|---|---|---|");
        let required: Vec<&str> = at.required().collect();
        let base = title
            .trim_start_matches("`[")
            .trim_start_matches('[')
            .trim_end_matches(['`', ']']);
        let base = if title == TOP { "" } else { base };
        for key in at.keys() {
            let Some(property) = at.property(key) else {
                continue;
            };
            let value = self.value(base, key, property);
            let default = if required.contains(&key) {
                "required".to_owned()
            } else {
                default(property)
            };
            let mut meaning = property.text("description").unwrap_or_default().to_owned();
            // What the choices mean is told where the choice is.
            let about = property.type_description();
            if !property.choices().is_empty() && property.choices().len() <= FEW && about != meaning
            {
                if about.starts_with(meaning.trim_end_matches('.')) {
                    about.clone_into(&mut meaning);
                } else {
                    meaning = format!("{meaning} {about}");
                }
            }
            if let Some(bounds) = property.bounds() {
                meaning.push(' ');
                meaning.push_str(&bounds);
            }
            self.line(&format!("| `{key}` | {value} | {default} | {meaning} |"));
        }
        self.line("");
        // The last one is taken first.
        self.sections[mark..].reverse();
    }

    /// What may be the value of a key, in words; notes tables and forms for later.
    fn value(&mut self, base: &str, key: &str, at: At<'s>) -> String {
        let name = if base.is_empty() {
            key.to_owned()
        } else {
            format!("{base}.{key}")
        };
        match at.kind() {
            "object" => match at.entries() {
                Some((_, entry)) if entry.kind() == "object" => {
                    let title = format!("`[{name}.<name>]`");
                    self.link(&title, entry);
                    format!("tables by name: {}", anchor(&title))
                }
                Some((_, entry)) => {
                    let what = self.scalar(entry);
                    format!("table of {what}")
                }
                None => {
                    let title = format!("`[{name}]`");
                    self.link(&title, at);
                    format!("table: {}", anchor(&title))
                }
            },
            "array" => match at.items() {
                Some(items) if items.kind() == "object" => {
                    let title = format!("`[[{name}]]`");
                    self.link(&title, items);
                    format!("list of tables: {}", anchor(&title))
                }
                Some(items) if items.alternatives().next().is_some() => {
                    let title = format!("`[[{name}]]`");
                    self.link(&title, items.of_kind("object"));
                    let text = self.scalar(items.of_kind("string"));
                    format!("list of {text}, or of tables: {}", anchor(&title))
                }
                Some(items) => format!("list of {}", self.scalar(items)),
                None => "list".to_owned(),
            },
            _ => self.scalar(at),
        }
    }

    fn link(&mut self, title: &str, at: At<'s>) {
        self.sections.push((title.to_owned(), at));
    }

    fn scalar(&mut self, at: At<'s>) -> String {
        let choices = at.choices();
        if choices.len() > FEW {
            return self.form(at);
        }
        if !choices.is_empty() {
            let quoted: Vec<String> = choices.iter().map(|c| format!("`\"{c}\"`")).collect();
            return quoted.join(", ");
        }
        let range = match (at.number("minimum"), at.number("maximum")) {
            (Some(least), Some(most)) => format!(", {least} to {most}"),
            _ => String::new(),
        };
        match at.kind() {
            "string" => self.form(at),
            kind => format!("{kind}{range}"),
        }
    }

    fn form(&mut self, at: At<'s>) -> String {
        let Some(name) = at.type_name() else {
            return "string".to_owned();
        };
        if !self.formats.iter().any(|(known, _)| *known == name) {
            self.formats.push((name, at));
        }
        format!("[{name}](#forms-of-texts)")
    }

    fn forms(&mut self) {
        self.line("## Forms of texts");
        self.line("");
        self.line("| Form | Example | What it is |");
        self.line("|---|---|---|");
        for (name, at) in self.formats.clone() {
            let example = crate::structure::example(at).unwrap_or_default();
            let mut about = at.type_description().to_owned();
            if at.choices().len() > FEW {
                let all: Vec<String> = at.choices().iter().map(|c| format!("`{c}`")).collect();
                about = format!("{about} {}.", all.join(", "));
            }
            if let Some(most) = at.count("maxLength") {
                about = format!("{about} At most {most} characters.");
            }
            self.line(&format!("| {name} | `{example}` | {about} |"));
        }
        self.line("");
    }

    fn limits(&mut self) {
        self.line("## Limits");
        self.line("");
        self.line("| What | At most |");
        self.line("|---|---|");
        let mib = MAX_TEXT_BYTES / (1024 * 1024);
        for (what, most) in [
            ("Size of the file", format!("{mib} MiB")),
            ("Depth of tables and lists", MAX_DEPTH.to_string()),
            ("Process types", authored::MAX_PROCESSES.to_string()),
            (
                "Instances of a process type",
                authored::MAX_INSTANCES.to_string(),
            ),
            (
                "Variables in one `env`",
                authored::MAX_VARIABLES.to_string(),
            ),
            (
                "Arguments of a command",
                authored::MAX_ARGUMENTS.to_string(),
            ),
            (
                "Variables and command of a process type, the `[env]` table among them",
                format!("{} KiB", authored::MAX_PROCESS_BYTES / 1024),
            ),
            ("Ports of a process type", authored::MAX_PORTS.to_string()),
            (
                "Secret bundles of a process type",
                authored::MAX_SECRETS.to_string(),
            ),
            (
                "Volumes of a process type",
                authored::MAX_VOLUMES.to_string(),
            ),
            ("Routes", authored::MAX_ROUTES.to_string()),
            ("TCP routes", authored::MAX_TCP_ROUTES.to_string()),
            ("Mistakes shown at once", MAX_DIAGNOSTICS.to_string()),
        ] {
            self.line(&format!("| {what} | {most} |"));
        }
        self.line("");
    }

    fn codes(&mut self) {
        self.line("## Codes");
        self.line("");
        self.line("`platform validate --format json` prints an array of");
        self.line(
            "`{code, path, line, column, message, hint}`. Lines and columns count from 1, columns",
        );
        self.line("in characters; `hint` may be null, and where several files are named `file` says which ([json.md](json.md)). Codes do not change; there may be new ones.");
        self.line("");
        self.line("| Code | When |");
        self.line("|---|---|");
        for code in Code::ALL {
            self.line(&format!("| `{code}` | {} |", code.describe()));
        }
        self.line("");
    }
}

fn default(at: At<'_>) -> String {
    match at.get("default") {
        Some(Value::Object(map)) if !map.is_empty() => "each key's own".to_owned(),
        Some(default) => inline(default).map_or_else(String::new, |text| format!("`{text}`")),
        None => "absent".to_owned(),
    }
}

/// A link to the section of this title, as GitHub makes them.
fn anchor(title: &str) -> String {
    let slug: String = title
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | ' '))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect();
    format!("[{title}](#{slug})")
}
