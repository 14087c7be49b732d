//! `platform certificates`: the certificates by which edges serve hosts.

use std::path::PathBuf;

use api::certificates::{AddCertificateRequest, CertificateRow, CertificateSource};
use clap::{Args, Subcommand};

use super::acme;
use super::pem_file::read;
use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::printed::{Removed, RemovedKind};
use crate::units;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

const EXAMPLES: &str = "\
Examples:
  platform certificates                                          those there are, and when they end
  platform certificates add --cert fullchain.pem --key key.pem   the same names again replace it
  platform certificates remove shop.example.com
  platform certificates acme on --email ops@example.com --agree-tos   Let's Encrypt certifies the hosts that are routed
  platform certificates ca > ca.pem                              of the hosts without a certificate
  curl --cacert ca.pem https://hello.localhost:8443/

A certificate is for the DNS names in it, wildcards too, whatever env routes them. Edges have it a
moment later, and drop no connection for it. The key is kept sealed by the server.";

/// The certificates of hosts: list, add and remove them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: ListArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(ListArguments),
    Add(AddArguments),
    Remove(RemoveArguments),
    Ca(CaArguments),
    Acme(acme::Arguments),
}

/// List the certificates, as `platform certificates` does
#[derive(Debug, Args)]
struct ListArguments {
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Add a certificate with its key, or put another one in its place
#[derive(Debug, Args)]
struct AddArguments {
    /// The certificate and, after it, those of its issuers, PEM: `fullchain.pem` of ACME clients
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Its private key, PEM, without a passphrase
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Its name in the cluster; one of the same name is replaced [default: the first host it is for]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Remove a certificate: edges have it no more
#[derive(Debug, Args)]
struct RemoveArguments {
    /// Its name, as `platform certificates` shows it
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Print the CA that signs the certificates of hosts that have none of their own, PEM
#[derive(Debug, Args)]
struct CaArguments {
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        None => list(arguments.list).await,
        Some(Command::List(arguments)) => list(arguments).await,
        Some(Command::Add(arguments)) => add(arguments).await,
        Some(Command::Remove(arguments)) => {
            let client = arguments.cluster.connect()?;
            client.remove_certificate(&arguments.name).await?;
            let name = output::one_line(&arguments.name);
            let sentence = format!("certificate {name} is removed");
            let removed = Removed::new(RemovedKind::Certificate, arguments.name);
            output::json_or_note(arguments.format, json_shapes::REMOVED, &removed, sentence)
        }
        Some(Command::Acme(arguments)) => acme::run(arguments).await,
        Some(Command::Ca(arguments)) => {
            let ca = arguments.cluster.connect()?.ingress_ca().await?;
            match arguments.format.format {
                Format::Json => output::json(json_shapes::INGRESS_CA, &ca),
                Format::Text => Ok(output::write(&ca.ca_pem)?),
            }
        }
    }
}

async fn list(arguments: ListArguments) -> Result<(), Failure> {
    let certificates = arguments.cluster.connect()?.certificates().await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::CERTIFICATES, &certificates);
    }
    if certificates.is_empty() {
        note(
            "no certificate was added: `https://` has those of the CA that `platform certificates ca` prints; `platform certificates acme on` orders others",
        );
        return Ok(());
    }
    table(&certificates).print()?;
    Ok(())
}

fn table(certificates: &[CertificateRow]) -> Table {
    let now = units::now();
    let mut table = Table::new(["NAME", "HOSTS", "ISSUER", "ENDS", "SOURCE", "BY"])
        .leaving_out_first(["BY", "SOURCE"]);
    for row in certificates {
        let left = row.not_after.millis_since(now) / DAY_MS;
        let ends = if row.not_after <= now {
            "ended".to_owned()
        } else {
            format!("in {left}d")
        };
        table.row([
            row.name.clone(),
            row.hosts.join(" "),
            row.issuer.clone(),
            ends,
            row.source.to_string(),
            row.by.clone(),
        ]);
        if let Some(failure) = &row.failure {
            table.note(&format!("edges do not have it: {failure}"));
        } else if row.expires_soon {
            table.note(match row.source {
                CertificateSource::Operator => {
                    "warning: add the next one, of the same name, before it ends"
                }
                CertificateSource::Acme => {
                    "warning: its renewal is late; `platform certificates acme` says why"
                }
            });
        }
    }
    table
}

async fn add(arguments: AddArguments) -> Result<(), Failure> {
    let request = AddCertificateRequest {
        name: arguments.name,
        chain_pem: read(&arguments.cert).await?,
        key_pem: read(&arguments.key).await?,
    };
    let row = arguments
        .cluster
        .connect()?
        .add_certificate(&request)
        .await?;
    if arguments.format.format == Format::Json {
        return output::json(json_shapes::CERTIFICATE, &row);
    }
    note(format!(
        "certificate {} is added, for {}",
        output::one_line(&row.name),
        output::one_line(&row.hosts.join(", "))
    ));
    if row.expires_soon {
        note("warning: it ends within 14 days");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use model::Timestamp;

    use super::*;

    #[test]
    fn case_a_table_fits_its_terminal_with_long_names() {
        let row = CertificateRow {
            name: "*.a-rather-long-name-of-a-shop.example.com".to_owned(),
            hosts: vec!["*.a-rather-long-name-of-a-shop.example.com".to_owned(); 5],
            issuer: "An Authority That Likes Long Names (Production) X9".to_owned(),
            not_after: Timestamp(0),
            expires_soon: true,
            source: CertificateSource::Operator,
            by: "somebody-with-a-long-name-of-an-administrator".to_owned(),
            added_at: Timestamp(0),
            failure: None,
        };
        for width in [80, 100] {
            output::fits(&table(std::slice::from_ref(&row)), width);
        }
    }
}
