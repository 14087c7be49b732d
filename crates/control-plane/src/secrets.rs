//! Secret bundles: sealed and opened here, so that the store never sees their contents.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::user::{
    MAX_BUNDLE_BYTES, MAX_PROCESS_SECRETS_BYTES, MAX_SECRET_BYTES, MAX_SECRET_NAME_BYTES,
    SetSecretsRequest,
};
use identity::SealKey;
use manifest::Manifest;
use model::EnvKey;
use model::instance::{SecretBundle, SecretVersion};
use store::{SealedBundle, Store};

use crate::failure::ApiFailure;
use crate::sealed;

type Files = BTreeMap<String, Vec<u8>>;

/// The secret bundles of all envs.
pub(crate) struct Secrets {
    store: Store,
    seal: Arc<SealKey>,
}

/// One version of a bundle.
pub(crate) struct OpenBundle {
    pub(crate) version: u32,
    pub(crate) files: Files,
    pub(crate) created_at: model::Timestamp,
}

impl Secrets {
    pub(crate) fn new(store: Store, seal: Arc<SealKey>) -> Self {
        Self { store, seal }
    }

    /// The sealed content of the next version of a bundle, which has this number, made from its newest one.
    pub(crate) async fn next(
        &self,
        env: &EnvKey,
        bundle: &str,
        version: u32,
        request: &SetSecretsRequest,
    ) -> Result<Vec<u8>, ApiFailure> {
        check_files(&request.set)?;
        let newest = self.newest(env, Some(bundle)).await?.remove(bundle);
        let mut files = newest.map_or_else(Files::new, |newest| newest.files);
        for name in &request.unset {
            if files.remove(name).is_none() {
                return Err(ApiFailure::not_found(
                    "secret_not_found",
                    format!("the bundle {bundle} of {env} has no file {name}"),
                ));
            }
        }
        files.extend(request.set.clone());
        check_size(bundle, &files)?;
        let plain = sealed::encode(&files).map_err(|e| ApiFailure::internal(&e))?;
        let sealed = self.seal.seal(&plain, &context(env, bundle, version))?;
        Ok(sealed)
    }

    /// The newest version of each bundle of an env, or of one bundle.
    pub(crate) async fn newest(
        &self,
        env: &EnvKey,
        bundle: Option<&str>,
    ) -> Result<BTreeMap<String, OpenBundle>, ApiFailure> {
        let newest = self.store.newest_secret_bundles(env, bundle).await?;
        let open = |sealed: SealedBundle| {
            let bundle = OpenBundle {
                version: sealed.version,
                files: self.open(env, &sealed.name, sealed.version, &sealed.sealed)?,
                created_at: sealed.created_at,
            };
            Ok((sealed.name, bundle))
        };
        newest.into_iter().map(open).collect()
    }

    /// What an instance boots with.
    pub(crate) async fn of_instance(
        &self,
        env: &EnvKey,
        wanted: &[SecretVersion],
    ) -> Result<Vec<SecretBundle>, ApiFailure> {
        let mut bundles = Vec::new();
        for SecretVersion { name, version, .. } in wanted {
            let sealed = self.store.secret_bundle(env, name, *version).await?;
            let sealed = sealed.ok_or_else(|| {
                ApiFailure::not_found(
                    "secret_not_found",
                    format!("{env} has no version {version} of the secret bundle {name}"),
                )
                .hint("set it again with `platform secrets set`, and deploy")
            })?;
            bundles.push(SecretBundle {
                name: name.clone(),
                files: self.open(env, name, *version, &sealed.sealed)?,
            });
        }
        Ok(bundles)
    }

    /// Whether the bundles of each process type, in their newest versions, fit into a guest's boot
    /// config.
    pub(crate) async fn check_fit(
        &self,
        env: &EnvKey,
        manifest: &Manifest,
    ) -> Result<(), ApiFailure> {
        if manifest
            .processes
            .values()
            .all(|process| process.secrets.is_empty())
        {
            return Ok(());
        }
        let newest = self.newest(env, None).await?;
        for (name, process) in &manifest.processes {
            let bundles = process.secrets.iter().filter_map(|name| newest.get(name));
            let bytes: usize = bundles.map(|bundle| size(&bundle.files)).sum();
            if bytes > MAX_PROCESS_SECRETS_BYTES {
                return Err(ApiFailure::refused(
                    "secrets_too_large",
                    format!(
                        "the secret bundles of process {name} have {bytes} bytes together; at most \
                         {MAX_PROCESS_SECRETS_BYTES} fit into a guest's boot config"
                    ),
                ));
            }
        }
        Ok(())
    }

    fn open(
        &self,
        env: &EnvKey,
        bundle: &str,
        version: u32,
        sealed: &[u8],
    ) -> Result<Files, ApiFailure> {
        let plain = self
            .seal
            .open(sealed, &context(env, bundle, version))
            .map_err(|error| {
                ApiFailure::conflict(
                    "secret_sealed",
                    format!("the secret bundle {bundle} of {env} cannot be opened: {error}"),
                )
                .hint("delete the bundle and set it again")
            })?;
        sealed::decode(&plain).map_err(|error| {
            let cause = display::chain(&error);
            ApiFailure::conflict(
                "secret_unreadable",
                format!("the secret bundle {bundle} of {env} cannot be read: {cause}"),
            )
        })
    }
}

/// What an envelope is bound to.
fn context(env: &EnvKey, bundle: &str, version: u32) -> String {
    format!("secret bundle {env}/{bundle} {version}")
}

fn size(files: &Files) -> usize {
    files
        .iter()
        .map(|(name, content)| name.len() + content.len())
        .sum()
}

fn check_files(files: &Files) -> Result<(), ApiFailure> {
    for (name, content) in files {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let is_name = !name.is_empty()
            && name.len() <= MAX_SECRET_NAME_BYTES
            && name != "."
            && name != ".."
            && name.bytes().all(plain);
        if !is_name {
            return Err(ApiFailure::refused(
                "secret_name",
                format!("`{name}` cannot be the name of a secret's file"),
            )
            .hint("use letters, digits, `.`, `_` and `-`, as in DATABASE_URL or tls.key"));
        }
        if content.len() > MAX_SECRET_BYTES {
            return Err(ApiFailure::refused(
                "secret_too_large",
                format!(
                    "{name} has {} bytes, a secret may have {MAX_SECRET_BYTES}",
                    content.len()
                ),
            ));
        }
    }
    Ok(())
}

fn check_size(bundle: &str, files: &Files) -> Result<(), ApiFailure> {
    let bytes = size(files);
    if bytes <= MAX_BUNDLE_BYTES {
        return Ok(());
    }
    Err(ApiFailure::refused(
        "secrets_too_large",
        format!(
            "the bundle {bundle} would have {bytes} bytes, a bundle may have {MAX_BUNDLE_BYTES}"
        ),
    )
    .hint("put some of it into another bundle, or on a volume"))
}
