//! The schemas: every file of `migrations/`, listed by `build.rs`.

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};

use crate::StoreError;

/// Number, name and SQL of each migration, in their order.
pub(crate) type Migrations = &'static [(i64, &'static str, &'static str)];

/// Those of SQLite.
pub(crate) const SQLITE: Migrations = include!(concat!(env!("OUT_DIR"), "/sqlite_migrations.rs"));
/// Those of PostgreSQL.
pub(crate) const POSTGRES: Migrations =
    include!(concat!(env!("OUT_DIR"), "/postgres_migrations.rs"));

/// The newest schema that this server knows.
pub(crate) fn newest() -> i64 {
    SQLITE.last().map_or(0, |(number, ..)| *number)
}

pub(crate) fn migrator(migrations: Migrations) -> Migrator {
    Migrator::with_migrations(
        migrations
            .iter()
            .map(|(version, name, sql)| {
                Migration::new(
                    *version,
                    (*name).into(),
                    MigrationType::Simple,
                    sqlx::SqlSafeStr::into_sql_str(*sql),
                    false,
                )
            })
            .collect(),
    )
}

/// Why a store could not be brought to this schema.
pub(crate) fn not_migrated(store: &str, source: MigrateError) -> StoreError {
    match source {
        MigrateError::VersionMissing(found) => StoreError::NewerSchema {
            store: store.to_owned(),
            found,
            known: newest(),
        },
        source => StoreError::Migrate {
            store: store.to_owned(),
            source,
        },
    }
}
