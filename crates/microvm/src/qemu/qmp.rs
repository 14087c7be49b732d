//! Asks the VMM by its monitor (QMP), one short connection for each question.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use crate::{StatusError, run_dir};

/// Longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest answer, in bytes.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

/// Gives the `return` of one command without arguments.
pub(crate) async fn ask(run_dir: &Path, command: &str) -> Result<Value, StatusError> {
    tokio::time::timeout(ANSWER_TIMEOUT, ask_patiently(run_dir, command))
        .await
        .map_err(|_| StatusError::Timeout {
            limit: ANSWER_TIMEOUT,
        })?
}

async fn ask_patiently(run_dir: &Path, command: &str) -> Result<Value, StatusError> {
    let path = run_dir::qmp_socket(run_dir);
    let wrong = |source| StatusError::Connection {
        path: path.clone(),
        source,
    };
    let stream = run_dir::connect(run_dir, "qmp.sock").await.map_err(wrong)?;
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader.take(MAX_ANSWER_BYTES)).lines();
    let mut next = async || -> Result<Value, StatusError> {
        let line = lines
            .next_line()
            .await
            .map_err(wrong)?
            .ok_or_else(|| StatusError::Answer("end of file".to_owned()))?;
        serde_json::from_str(&line).map_err(|error| StatusError::Answer(error.to_string()))
    };
    next().await?;
    for command in ["qmp_capabilities", command] {
        let line = format!("{}\n", json!({ "execute": command }));
        writer.write_all(line.as_bytes()).await.map_err(wrong)?;
        // Events may come between.
        let answer = loop {
            let mut value = next().await?;
            if let Some(error) = value.get("error") {
                return Err(StatusError::Answer(error.to_string()));
            }
            if let Some(answer) = value.get_mut("return") {
                break answer.take();
            }
        };
        if command != "qmp_capabilities" {
            return Ok(answer);
        }
    }
    Err(StatusError::Answer("no answer".to_owned()))
}
