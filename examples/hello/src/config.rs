//! The app's own settings: a file in the image, and variables that win over it.

use std::path::PathBuf;

/// Where the image has the file.
const DEFAULT_PATH: &str = "/etc/hello/hello.toml";

/// Settings with their meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// What the page says; `greeting` in the file, `HELLO_GREETING`.
    pub(crate) greeting: String,
    /// Where to listen; `port` in the file, `PORT`.
    pub(crate) port: u16,
    /// Where hits are counted; `state_dir` in the file, `HELLO_STATE_DIR`.
    pub(crate) state_dir: PathBuf,
    /// Time between two ticks of the worker, in seconds; `tick_seconds` in the file,
    /// `HELLO_TICK_SECONDS`.
    pub(crate) tick_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            greeting: "Hello!".to_owned(),
            port: 8080,
            state_dir: PathBuf::from("/var/lib/hello"),
            tick_seconds: 5,
        }
    }
}

impl Config {
    /// Reads the file (`HELLO_CONFIG` names another one; none at all is fine), then the variables.
    pub(crate) fn load() -> Result<Self, String> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let path = variable("HELLO_CONFIG").unwrap_or_else(|| DEFAULT_PATH.to_owned());
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(format!("cannot read {path}: {error}")),
        };
        let mut config = Self::default();
        config
            .read(&text)
            .map_err(|reason| format!("{path}: {reason}"))?;
        for (name, key) in [
            ("HELLO_GREETING", "greeting"),
            ("PORT", "port"),
            ("HELLO_STATE_DIR", "state_dir"),
            ("HELLO_TICK_SECONDS", "tick_seconds"),
        ] {
            if let Some(value) = variable(name) {
                config
                    .set(key, &value)
                    .map_err(|reason| format!("${name}: {reason}"))?;
            }
        }
        Ok(config)
    }

    /// `key = "value"` or `key = 5`, one a line; `#` begins a comment line.
    fn read(&mut self, text: &str) -> Result<(), String> {
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let at = |reason: &str| format!("line {}: {reason}", index + 1);
            let (key, value) = line.split_once('=').ok_or_else(|| at("it has no `=`"))?;
            let value = value.trim();
            let value = match value.strip_prefix('"') {
                Some(rest) => rest
                    .strip_suffix('"')
                    .ok_or_else(|| at("the quote is not closed"))?,
                None => value,
            };
            self.set(key.trim(), value).map_err(|reason| at(&reason))?;
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let wrong = |_| format!("`{value}` is not a proper {key}");
        match key {
            "greeting" => value.clone_into(&mut self.greeting),
            "port" => self.port = value.parse().map_err(wrong)?,
            "state_dir" => self.state_dir = PathBuf::from(value),
            "tick_seconds" => self.tick_seconds = value.parse().map_err(wrong)?,
            other => return Err(format!("unknown key `{other}`")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_and_its_mistakes_are_named() {
        let mut config = Config::default();
        let text = "# a comment\ngreeting = \"Good day\"\n\nport=81\n";
        assert_eq!(config.read(text), Ok(()));
        assert_eq!((config.greeting.as_str(), config.port), ("Good day", 81));
        for (text, reason) in [
            ("greeting", "line 1: it has no `=`"),
            ("\ngreeting = \"x", "line 2: the quote is not closed"),
            ("gretting = x", "line 1: unknown key `gretting`"),
            ("port = 70000", "line 1: `70000` is not a proper port"),
        ] {
            assert_eq!(config.read(text), Err(reason.to_owned()));
        }
    }
}
