//! The route table and its generation.

use std::collections::BTreeMap;

use api::edge::{Route, RouteTable};
use model::Generation;
use sqlx::Row as _;

use crate::open::commit;
use crate::rows::{from_json, number, to_i64, to_json};
use crate::{Store, StoreError};

impl Store {
    /// Makes this the route table. Its generation grows when it is another than before, and only
    /// then; over restarts of the server, too.
    pub async fn set_routes(
        &self,
        routes: &BTreeMap<String, Route>,
    ) -> Result<RouteTable, StoreError> {
        let operation = "write the route table";
        let mut tx = self.begin().await?;
        let row = sqlx::query("SELECT generation, routes_json FROM route_table")
            .fetch_optional(&mut *tx)
            .await
            .map_err(StoreError::query(operation))?;
        let before = match row {
            Some(row) => RouteTable {
                generation: Generation(number("a generation", row.get(0))?),
                routes: from_json("the route table", row.get(1))?,
            },
            None => RouteTable {
                generation: Generation(0),
                routes: BTreeMap::new(),
            },
        };
        if before.routes == *routes && before.generation.0 > 0 {
            return Ok(before);
        }
        let after = RouteTable {
            generation: Generation(before.generation.0 + 1),
            routes: routes.clone(),
        };
        sqlx::query(
            "INSERT INTO route_table (one, generation, routes_json) VALUES (1, ?1, ?2) \
             ON CONFLICT DO UPDATE SET generation = ?1, routes_json = ?2",
        )
        .bind(to_i64("a generation", after.generation.0)?)
        .bind(to_json("the route table", routes)?)
        .execute(&mut *tx)
        .await
        .map_err(StoreError::query(operation))?;
        commit(tx, operation).await?;
        Ok(after)
    }
}
