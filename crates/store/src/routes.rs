//! The route table and its generation.

use std::collections::BTreeMap;

use api::edge::{Route, RouteTable};
use model::Generation;
use sqlx::{Row as _, SqliteConnection};

use crate::open::commit;
use crate::record::{JSON_VERSION, from_json, to_json};
use crate::rows::{number, to_i64};
use crate::{Store, StoreError};

impl Store {
    /// The route table that was written last; of generation 0 before the first.
    pub async fn routes(&self) -> Result<RouteTable, StoreError> {
        let connection = self.reader.acquire().await;
        let mut connection = connection.map_err(StoreError::query("read the route table"))?;
        read(&mut connection).await
    }

    /// Makes this the route table. Its generation grows when it is another than before, and only
    /// then; over restarts of the server, too.
    pub async fn set_routes(
        &self,
        routes: &BTreeMap<String, Route>,
    ) -> Result<RouteTable, StoreError> {
        let operation = "write the route table";
        let mut tx = self.begin().await?;
        let before = read(&mut tx).await?;
        if before.routes == *routes && before.generation.0 > 0 {
            return Ok(before);
        }
        let after = RouteTable {
            generation: Generation(before.generation.0 + 1),
            routes: routes.clone(),
            unreadable: BTreeMap::new(),
        };
        sqlx::query(
            "INSERT INTO route_table (one, generation, routes_json, json_version) VALUES (1, ?1, ?2, ?3) \
             ON CONFLICT DO UPDATE SET generation = ?1, routes_json = ?2, json_version = ?3",
        )
        .bind(to_i64("a generation", after.generation.0)?)
        .bind(to_json(routes)?)
        .bind(JSON_VERSION)
        .execute(&mut *tx)
        .await
        .map_err(StoreError::query(operation))?;
        commit(tx, operation).await?;
        Ok(after)
    }
}

/// A damaged route table is made anew from the cluster state, under the next generation. One of a newer server is kept.
async fn read(db: &mut SqliteConnection) -> Result<RouteTable, StoreError> {
    let row = sqlx::query("SELECT generation, routes_json, json_version FROM route_table")
        .fetch_optional(db)
        .await
        .map_err(StoreError::query("read the route table"))?;
    let Some(row) = row else {
        return Ok(RouteTable::default());
    };
    let version: i64 = row.get(2);
    let routes = match from_json(version, row.get(1)) {
        Ok(routes) => routes,
        Err(cause) if version > JSON_VERSION => return Err(StoreError::Unreadable { cause }),
        Err(cause) => {
            tracing::warn!(%cause, "the route table is made anew");
            BTreeMap::new()
        }
    };
    Ok(RouteTable {
        generation: Generation(number("a generation", row.get(0))?),
        routes,
        unreadable: BTreeMap::new(),
    })
}
