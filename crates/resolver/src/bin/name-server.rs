//! `platform resolver` without the rest of `platform`, for the tests and the measurements of this crate.

use std::process::ExitCode;

use resolver::process::{ProcessOptions, run};

fn main() -> ExitCode {
    let Some(options) = parse(&std::env::args().skip(1).collect::<Vec<_>>()) else {
        eprintln!("usage: name-server resolver --namespace FILE --control SOCKET");
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

fn parse(arguments: &[String]) -> Option<ProcessOptions> {
    let [command, first, namespace, second, control] = arguments else {
        return None;
    };
    let words = [command, first, second].map(String::as_str);
    (words == ["resolver", "--namespace", "--control"]).then(|| ProcessOptions {
        namespace: namespace.into(),
        control: control.into(),
    })
}
