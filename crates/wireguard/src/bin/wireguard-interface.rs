//! `platform wireguard` without the rest of `platform`, for the tests and the measurements of this crate.

use std::process::ExitCode;

use wireguard::process::{ProcessOptions, run};

fn main() -> ExitCode {
    let Some(options) = parse(std::env::args().skip(1).collect()) else {
        eprintln!(
            "usage: wireguard-interface wireguard --name NAME [--namespace FILE] --port PORT --mtu BYTES --control SOCKET [--no-offload]"
        );
        return ExitCode::from(2);
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            eprintln!("error: {error}: {}", cause.unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: Vec<String>) -> Option<ProcessOptions> {
    let (command, rest) = arguments.split_first()?;
    let value = |name: &str| {
        let at = rest.iter().position(|word| word == name)?;
        rest.get(at + 1)
    };
    (command == "wireguard").then_some(())?;
    Some(ProcessOptions {
        name: value("--name")?.clone(),
        namespace: value("--namespace").map(Into::into),
        port: value("--port")?.parse().ok()?,
        mtu: value("--mtu")?.parse().ok()?,
        control: value("--control")?.into(),
        offload: !rest.iter().any(|word| word == "--no-offload"),
    })
}
