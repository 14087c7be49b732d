//! An edge on loopback, for `make clients` and `make soak`: it serves what its folder says, and follows the server that is named in it.
//!
//! `loopback FOLDER HTTP HTTPS METRICS` listens at three addresses. `crates/edge-proxy/clients/stand.py` writes the folder and is that server. Of 127.0.0.2
//! it believes what a trusted proxy says. SIGTERM ends it as it ends `platform edge`.
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "it is for tests, and fails by panicking"
)]

use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;

use edge_proxy::{AccessLogTarget, EdgeOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// As the `platform` binary has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [folder, http, https, metrics] = &arguments[..] else {
        eprintln!("usage: loopback FOLDER HTTP HTTPS METRICS");
        std::process::exit(2);
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let data_dir = PathBuf::from(folder);
    let options = EdgeOptions {
        listen: address(http),
        tcp_ports: edge_proxy::PortRanges::default(),
        listen_tls: Some(address(https)),
        https_port: None,
        error_pages: None,
        // Those of `member.json` in the folder.
        server: None,
        token: None,
        name: "edge".to_owned(),
        region: "home".to_owned(),
        metrics_listen: Some(address(metrics)),
        underlay: membership::UnderlayOptions::default(),
        trusted_proxies: vec!["127.0.0.2/32".parse().unwrap()],
        access_log: Some(AccessLogTarget::File(data_dir.join("access.log"))),
        data_dir,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let asked = shutdown.clone();
        let mut end = signal(SignalKind::terminate()).unwrap();
        tokio::spawn(async move {
            end.recv().await;
            asked.cancel();
        });
        edge_proxy::run(options, shutdown).await.unwrap();
    });
}
