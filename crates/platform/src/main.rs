//! The `platform` binary: the command line for users, and the roles that make up a cluster.
//!
//! This file only starts the command; each command is a module of [`commands`], what they share is
//! beside them: [`connection`] (which cluster, which app), [`output`] (tables, JSON), [`json_shapes`] and [`printed`] (what is printed as JSON), [`shutdown`] (how a role is stopped),
//! [`role_options`], [`join_token`], [`service`] (how a role is set up), [`notify`] (what it tells systemd), [`succession`] and [`sockets`] (how one edge takes the place of another), [`registry_access`] (registries and logins), [`watch`] (a list again and again), [`failure`] (how an error is printed), [`rollout`] (watching a release come up).
//! Exit status: 0 done, 1 the user's input is wrong or the cluster refuses, 2 usage.

mod cli;
mod commands;
mod connection;
mod contexts;
mod failure;
mod join_token;
mod json_shapes;
mod logging;
mod notify;
mod output;
mod printed;
mod registry_access;
mod role_options;
mod rollout;
mod service;
mod shutdown;
mod sockets;
mod succession;
mod units;
mod watch;

use std::process::ExitCode;

use clap::Parser as _;

/// A server allocates and frees in every request; this allocator makes a sign of life of a node a third cheaper than the C library's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli::run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
