//! `platform certificates acme`: certificates that the cluster orders by itself.

use std::path::PathBuf;

use api::acme::{
    AcmeNameRow, AcmeRequest, AcmeStatus, ChallengePreference, ExternalAccount, HostKeyType,
    LETS_ENCRYPT, LETS_ENCRYPT_STAGING,
};
use api_client::ApiClient;
use clap::{Args, Subcommand, ValueEnum};

use super::pem_file::read;
use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, note};
use crate::units;

const EXAMPLES: &str = "\
Examples:
  platform certificates acme on --email ops@example.com --agree-tos     Let's Encrypt, for every host that is routed
  platform certificates acme on --staging --agree-tos                   a try: no browser trusts these
  platform certificates acme on --agree-tos --wildcard '*.example.com'  by the server's hook for the DNS
  platform certificates acme                                            how it goes, and what fails
  platform certificates acme retry shop.example.com                     now, and not when its time has come
  platform certificates acme off                                        what there is lapses

A host whose certificate a user added has that one. `platform certificates` lists all of them.";

/// Certificates by ACME (Let's Encrypt and its like): how it goes, on, off
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    show: ShowArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    Show(ShowArguments),
    On(Box<OnArguments>),
    Off(OffArguments),
    Retry(RetryArguments),
}

/// Show how it goes, as `platform certificates acme` does
#[derive(Debug, Args)]
struct ShowArguments {
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Order certificates for the hosts that are routed, from now on
///
/// What was set before is replaced as a whole, but for the account.
#[derive(Debug, Args)]
struct OnArguments {
    /// Agree to the authority's terms of service; without, it says where they are
    #[arg(long)]
    agree_tos: bool,
    /// A mail address at which the authority reaches you
    #[arg(long, value_name = "ADDRESS")]
    email: Option<String>,
    /// The URL of the authority's directory [default: Let's Encrypt's]
    #[arg(long, value_name = "URL", conflicts_with = "staging")]
    directory: Option<String>,
    /// Let's Encrypt's authority for tries: no browser trusts its certificates, and its limits are wide
    #[arg(long)]
    staging: bool,
    /// Of an authority of your own: the CA by which its directory is trusted, PEM. Names that are not public are ordered too, then
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The id of the key of an external account, where the authority asks for one (EAB)
    #[arg(long, value_name = "ID", requires = "eab_key_file")]
    eab_key_id: Option<String>,
    /// A file with that key, base64url as the authority gives it
    #[arg(long, value_name = "FILE", requires = "eab_key_id")]
    eab_key_file: Option<PathBuf>,
    /// The keys of certificates
    #[arg(long, value_name = "KIND", default_value = "ecdsa-p256")]
    key_type: KeyKind,
    /// How the authority is shown that hosts lead here: `auto` takes HTTP-01 and TLS-ALPN-01 in turn, and DNS-01 for wildcards
    #[arg(long, value_name = "KIND", default_value = "auto")]
    challenge: ChallengeKind,
    /// A wildcard to order, such as `*.example.com`: hosts that fit it have no certificate of their own; repeatable. It needs a server with
    /// `--acme-dns-hook`
    #[arg(long = "wildcard", value_name = "NAME")]
    wildcards: Vec<String>,
    /// How many orders begin in an hour at most [default: 90]
    #[arg(long, value_name = "NUMBER")]
    orders_per_hour: Option<u32>,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Order none any more: those there are lapse
#[derive(Debug, Args)]
struct OffArguments {
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// Try a name again now whose order failed
#[derive(Debug, Args)]
struct RetryArguments {
    /// The host, or the wildcard
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KeyKind {
    EcdsaP256,
    EcdsaP384,
    Rsa2048,
}

impl From<KeyKind> for HostKeyType {
    fn from(kind: KeyKind) -> Self {
        match kind {
            KeyKind::EcdsaP256 => Self::EcdsaP256,
            KeyKind::EcdsaP384 => Self::EcdsaP384,
            KeyKind::Rsa2048 => Self::Rsa2048,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ChallengeKind {
    Auto,
    #[value(name = "http-01")]
    Http01,
    #[value(name = "tls-alpn-01")]
    TlsAlpn01,
    #[value(name = "dns-01")]
    Dns01,
}

impl From<ChallengeKind> for ChallengePreference {
    fn from(kind: ChallengeKind) -> Self {
        match kind {
            ChallengeKind::Auto => Self::Auto,
            ChallengeKind::Http01 => Self::Http01,
            ChallengeKind::TlsAlpn01 => Self::TlsAlpn01,
            ChallengeKind::Dns01 => Self::Dns01,
        }
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        None => show(arguments.show).await,
        Some(Command::Show(arguments)) => show(arguments).await,
        Some(Command::On(arguments)) => on(*arguments).await,
        Some(Command::Off(arguments)) => {
            let client = arguments.cluster.connect()?;
            client.unset_acme().await?;
            let sentence = "no certificate is ordered any more; those there are lapse";
            print_changed(&client, arguments.format, sentence).await
        }
        Some(Command::Retry(arguments)) => {
            let client = arguments.cluster.connect()?;
            client.retry_acme(&arguments.name).await?;
            let name = output::one_line(&arguments.name);
            let sentence = format!(
                "{name} is tried again; `platform events -f --kind certificate` tells how it goes"
            );
            print_changed(&client, arguments.format, &sentence).await
        }
    }
}

/// Prints how it goes now, after a change; people have the sentence.
async fn print_changed(
    client: &ApiClient,
    format: FormatArguments,
    sentence: &str,
) -> Result<(), Failure> {
    if format.format == Format::Json {
        return output::json(json_shapes::ACME, &client.acme().await?);
    }
    note(sentence);
    Ok(())
}

async fn show(arguments: ShowArguments) -> Result<(), Failure> {
    let status = arguments.cluster.connect()?.acme().await?;
    print(&status, arguments.format.format)
}

async fn on(arguments: OnArguments) -> Result<(), Failure> {
    let directory = match (arguments.directory, arguments.staging) {
        (Some(url), _) => url,
        (None, true) => LETS_ENCRYPT_STAGING.to_owned(),
        (None, false) => LETS_ENCRYPT.to_owned(),
    };
    let external_account = match (arguments.eab_key_id, arguments.eab_key_file) {
        (Some(key_id), Some(file)) => Some(ExternalAccount {
            key_id,
            hmac_key: read(&file).await?.trim().to_owned(),
        }),
        _ => None,
    };
    let request = AcmeRequest {
        directory,
        terms_of_service_agreed: arguments.agree_tos,
        email: arguments.email,
        external_account,
        ca_pem: match &arguments.ca_file {
            Some(file) => Some(read(file).await?),
            None => None,
        },
        key_type: arguments.key_type.into(),
        challenge: arguments.challenge.into(),
        wildcards: arguments.wildcards.into_iter().collect(),
        orders_per_hour: arguments.orders_per_hour,
    };
    let client = arguments.cluster.connect()?;
    let status = client.set_acme(&request).await?;
    if arguments.format.format == Format::Text {
        note("certificates are ordered from now on; `platform certificates` lists those there are");
    }
    print(&status, arguments.format.format)
}

fn print(status: &AcmeStatus, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(json_shapes::ACME, status);
    }
    let Some(settings) = &status.settings else {
        note(
            "off: `platform certificates acme on --email ADDRESS --agree-tos` has Let's Encrypt certify the hosts that are routed",
        );
        return Ok(());
    };
    let mut lines = vec![
        format!("directory  {}", output::one_line(&settings.directory)),
        format!(
            "account    {}",
            output::one_line(settings.account.as_deref().unwrap_or("none yet"))
        ),
    ];
    if let Some(email) = &settings.email {
        lines.push(format!("email      {}", output::one_line(email)));
    }
    lines.push(format!(
        "challenge  {}{}",
        settings.challenge,
        if status.has_dns_hook {
            ", with a hook for the DNS"
        } else {
            ""
        }
    ));
    lines.push(format!(
        "keys       {}, {} orders an hour",
        settings.key_type, settings.orders_per_hour
    ));
    if !settings.wildcards.is_empty() {
        let all: Vec<_> = settings
            .wildcards
            .iter()
            .map(|name| output::one_line(name))
            .collect();
        lines.push(format!("wildcards  {}", all.join(" ")));
    }
    lines.push(format!(
        "names      {}, of which {} have none yet",
        status.wanted, status.missing
    ));
    output::write(&format!("{}\n", lines.join("\n")))?;
    if let Some(waits) = &status.waits {
        note(format!("waits: {}", output::one_line(waits)));
    }
    if !status.names.is_empty() {
        output::write("\n")?;
        table(&status.names).print()?;
    }
    Ok(())
}

fn table(names: &[AcmeNameRow]) -> Table {
    let now = units::now();
    let mut table = Table::new(["NAME", "STATE", "FAILED", "NEXT TRY"]);
    for row in names {
        let state = if row.is_ordering {
            "ordering"
        } else if row.failures > 0 {
            "failed"
        } else {
            "waiting"
        };
        let next = row.next_at.map_or("-".to_owned(), |at| {
            let left = at.millis_since(now);
            if left == 0 {
                "now".to_owned()
            } else {
                format!("in {}m", left.div_ceil(60_000))
            }
        });
        table.row([
            row.name.clone(),
            state.to_owned(),
            format!("{} times", row.failures),
            next,
        ]);
        if let Some(failure) = &row.failure {
            table.note(failure);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use model::Timestamp;

    use super::*;

    #[test]
    fn case_a_table_fits_its_terminal_with_long_names() {
        let row = AcmeNameRow {
            name: "a-rather-long-name-of-a-shop.example.com".to_owned(),
            is_ordering: false,
            failures: 17,
            failure: Some("203.0.113.7: Fetching http://a-rather-long-name-of-a-shop.example.com/.well-known/acme-challenge/x: Connection refused (connection)".to_owned()),
            failed_at: Some(Timestamp(0)),
            next_at: Some(Timestamp(0)),
        };
        for width in [80, 100] {
            output::fits(&table(std::slice::from_ref(&row)), width);
        }
    }
}
