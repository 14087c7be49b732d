//! The description of the API for programs (OpenAPI 3.1): every call of users, with what it is made and what is answered.
//!
//! [`CALLS`] has the calls. Their queries and bodies are the types that the server reads and writes; these derive their schemas, so the description
//! has what the server has. A request's schema says what the server takes, and an answer's what it writes.
//!
//! Deliberately absent: calls of machines, which are between versions of this program.

mod calls;
mod names;

use std::collections::BTreeSet;

use model::{
    AppName, BundleName, EdgeId, EnvName, InstanceId, NodeId, OrgName, ReleaseNumber, UserName,
    VolumeId,
};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::{IDEMPOTENCY_KEY, MAX_IDEMPOTENCY_KEY_BYTES, PROBLEM_JSON, Problem};

pub use calls::CALLS;

/// The media type of lines of JSON.
const JSON_LINES: &str = "application/x-ndjson";
/// Where the schemas are in the document.
const SCHEMAS: &str = "#/components/schemas/";
/// What is appended to the name of a type of which requests have another schema than answers.
const OF_REQUESTS: &str = "Input";

/// A call of users.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// The method, in capital letters.
    pub method: &'static str,
    /// The path, one of [`crate::paths`].
    pub path: &'static str,
    /// What it does, for people.
    does: &'static str,
    needs: Needs,
    query: Option<Type>,
    body: Option<Type>,
    is_keyed: bool,
    status: u16,
    answer: Answer,
    /// Statuses of refusals beside those that every such call may have.
    refusals: &'static [u16],
}

/// Makes the schema of a type.
type Type = fn(&mut SchemaGenerator) -> Schema;

/// What a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// No token.
    Nothing,
    /// A token, and what this says.
    Token(&'static str),
}

/// What a call is answered with.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Nothing,
    Text,
    Json(Type),
    /// A page of a list, with a header that names the next.
    Page(Type),
    /// Lines of JSON.
    Lines(Type),
    /// Frames of this protocol, after an upgrade.
    Frames(&'static str),
}

impl Call {
    const fn new(method: &'static str, path: &'static str, needs: &'static str) -> Self {
        Self {
            method,
            path,
            does: "",
            needs: Needs::Token(needs),
            query: None,
            body: None,
            is_keyed: false,
            status: 204,
            answer: Answer::Nothing,
            refusals: &[],
        }
    }

    const fn does(self, does: &'static str) -> Self {
        Self { does, ..self }
    }

    const fn without_token(self) -> Self {
        Self {
            needs: Needs::Nothing,
            ..self
        }
    }

    const fn query(self, query: Type) -> Self {
        Self {
            query: Some(query),
            ..self
        }
    }

    const fn body(self, body: Type) -> Self {
        Self {
            body: Some(body),
            ..self
        }
    }

    /// It takes the header [`IDEMPOTENCY_KEY`].
    const fn keyed(self) -> Self {
        Self {
            is_keyed: true,
            ..self
        }
    }

    const fn answers(self, status: u16, answer: Answer) -> Self {
        Self {
            status,
            answer,
            ..self
        }
    }

    const fn refuses(self, refusals: &'static [u16]) -> Self {
        Self { refusals, ..self }
    }

    /// Whether its URL may have a query.
    pub fn has_query(&self) -> bool {
        self.query.is_some()
    }

    /// Every status with which it may be refused.
    fn refused_with(&self) -> BTreeSet<u16> {
        let mut refused: BTreeSet<u16> = self.refusals.iter().copied().collect();
        if self.needs == Needs::Nothing {
            return refused;
        }
        refused.extend([400, 401, 403, 503]);
        if self.path.contains('{') {
            refused.insert(404);
        }
        if self.body.is_some() {
            refused.insert(413);
        }
        refused
    }
}

/// The call of users that a method and a path of [`crate::paths`] name.
pub fn call_of(method: &str, path: &str) -> Option<&'static Call> {
    (CALLS.iter()).find(|call| call.method == method && call.path == path)
}

/// A reference to the schema of a type.
fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// The schema of a type itself.
fn fields_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

/// The document.
pub fn document() -> Value {
    let mut schemas = Schemas::new();
    let mut described: Map<String, Value> = Map::new();
    for call in CALLS {
        let operation = schemas.operation(call);
        let path = described.entry(call.path).or_insert_with(|| json!({}));
        path[call.method.to_lowercase()] = operation;
    }
    let problem = schemas.answer(of::<Problem>);
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Platform",
            "version": "1",
            "description": "What users and their programs call. docs/api.md says what all calls have in common.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "token": [] }],
        "paths": described,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "responses": {
                "Problem": {
                    "description": "It was refused, or it failed (RFC 9457)",
                    "content": { PROBLEM_JSON: { "schema": problem } },
                },
            },
        },
    });
    let schemas = schemas.merged(&mut document["paths"]);
    document["components"]["schemas"] = Value::Object(schemas);
    tidy(&mut document);
    document
}

/// The schemas of what is read and of what is written, apart: a field that may be left out of a request is always in an answer.
struct Schemas {
    requests: SchemaGenerator,
    answers: SchemaGenerator,
}

impl Schemas {
    fn new() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = "/components/schemas".into();
                settings.meta_schema = None;
            })
        };
        Self {
            requests: settings().for_deserialize().into_generator(),
            answers: settings().for_serialize().into_generator(),
        }
    }

    fn request(&mut self, of: Type) -> Value {
        of(&mut self.requests).to_value()
    }

    fn answer(&mut self, of: Type) -> Value {
        of(&mut self.answers).to_value()
    }

    fn operation(&mut self, call: &Call) -> Value {
        let mut operation = json!({
            "operationId": operation_id(call),
            "summary": call.does,
            "responses": self.responses(call),
        });
        match call.needs {
            Needs::Nothing => operation["security"] = json!([]),
            Needs::Token(needs) => operation["description"] = json!(format!("Needs: {needs}.")),
        }
        let parameters = self.parameters(call);
        if !parameters.is_empty() {
            operation["parameters"] = Value::Array(parameters);
        }
        if let Some(body) = call.body {
            operation["requestBody"] = json!({
                "required": true,
                "content": { "application/json": { "schema": self.request(body) } },
            });
        }
        operation
    }

    fn parameters(&mut self, call: &Call) -> Vec<Value> {
        let captured = call.path.split('/').filter_map(|part| {
            let name = part.strip_prefix('{')?;
            name.strip_suffix('}')
        });
        let mut parameters = Vec::new();
        for name in captured {
            parameters.push(json!({
                "name": name, "in": "path", "required": true, "schema": self.captured(name),
            }));
        }
        if let Some(query) = call.query {
            let of = self.request(query);
            let required = of["required"].as_array().cloned().unwrap_or_default();
            for (name, schema) in of["properties"].as_object().into_iter().flatten() {
                let mut schema = not_null(schema.clone());
                let description = schema.as_object_mut().and_then(|s| s.remove("description"));
                parameters.push(json!({
                    "name": name, "in": "query", "required": required.contains(&json!(name)),
                    "description": description.unwrap_or_default(), "schema": schema,
                }));
            }
        }
        if call.is_keyed {
            parameters.push(json!({
                "name": IDEMPOTENCY_KEY, "in": "header", "required": false,
                "description": "A name that no other call has: the same call is made once, however often it is sent",
                "schema": {
                    "type": "string",
                    "pattern": format!("^[!#-~]{{1,{MAX_IDEMPOTENCY_KEY_BYTES}}}$"),
                },
            }));
        }
        parameters
    }

    /// The schema of what a path has in a place.
    fn captured(&mut self, name: &str) -> Value {
        let of: Type = match name {
            "app" => of::<AppName>,
            "env" => of::<EnvName>,
            "org" => of::<OrgName>,
            "user" => of::<UserName>,
            "bundle" => of::<BundleName>,
            "node" => of::<NodeId>,
            "edge" => of::<EdgeId>,
            "instance" => of::<InstanceId>,
            "volume" => of::<VolumeId>,
            "member" => return json!({ "type": "string", "pattern": "^[ne][0-9]{1,5}$" }),
            "release" => of::<ReleaseNumber>,
            "port" => return json!({ "type": "integer", "minimum": 1, "maximum": 65_535 }),
            // By what a token is revoked.
            _ => return json!({ "type": "string", "minLength": 1, "pattern": "^[0-9a-f]+$" }),
        };
        self.request(of)
    }

    fn responses(&mut self, call: &Call) -> Value {
        let content = |media: &str, schema: Value| json!({ media: { "schema": schema } });
        let mut answered = json!({ "description": "Done" });
        match call.answer {
            Answer::Nothing => {}
            Answer::Text => {
                answered["content"] = content("text/plain", json!({ "type": "string" }));
            }
            Answer::Json(of) => answered["content"] = content("application/json", self.answer(of)),
            Answer::Lines(of) => answered["content"] = content(JSON_LINES, self.answer(of)),
            Answer::Frames(protocol) => {
                answered["description"] = json!(format!("Frames of `{protocol}` from here on"));
            }
            Answer::Page(of) => {
                answered["content"] = content("application/json", self.answer(of));
                answered["headers"] = json!({ "Link": {
                    "description": "The next page, where there is one: `<URL>; rel=\"next\"` (RFC 8288)",
                    "schema": { "type": "string" },
                } });
            }
        }
        let refused = call.refused_with().into_iter().map(|status| {
            let problem = json!({ "$ref": "#/components/responses/Problem" });
            (status.to_string(), problem)
        });
        let all = std::iter::once((call.status.to_string(), answered)).chain(refused);
        Value::Object(all.collect())
    }

    /// All schemas by their names. Where one of requests is not that of answers it gets a name of its own, and with it whatever of requests
    /// leads to it; `paths` follows.
    fn merged(mut self, paths: &mut Value) -> Map<String, Value> {
        let requests = self.requests.take_definitions(true);
        let mut schemas = self.answers.take_definitions(true);
        let leads_to = |schema: &Value, renamed: &BTreeSet<String>| {
            let mut leads = false;
            references(&mut schema.clone(), &mut |name| {
                leads |= renamed.contains(name);
                None
            });
            leads
        };
        let mut renamed: BTreeSet<String> = BTreeSet::new();
        loop {
            let before = renamed.len();
            for (name, schema) in &requests {
                let other = schemas.get(name);
                if other.is_some_and(|other| other != schema || leads_to(schema, &renamed)) {
                    renamed.insert(name.clone());
                }
            }
            if renamed.len() == before {
                break;
            }
        }
        let own = |name: &str| {
            renamed
                .contains(name)
                .then(|| format!("{name}{OF_REQUESTS}"))
        };
        for (name, mut schema) in requests {
            references(&mut schema, &mut |name| own(name));
            schemas.insert(own(&name).unwrap_or(name), schema);
        }
        let operations = paths.as_object_mut().into_iter().flat_map(Map::values_mut);
        for operation in
            operations.flat_map(|path| path.as_object_mut().into_iter().flat_map(Map::values_mut))
        {
            for of_request in ["parameters", "requestBody"] {
                if let Some(part) = operation.get_mut(of_request) {
                    references(part, &mut |name| own(name));
                }
            }
        }
        schemas
    }
}

/// Calls `rename` with the name of every schema that is referred to, and puts another in its place where it gives one.
fn references(value: &mut Value, rename: &mut impl FnMut(&str) -> Option<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(to)) = fields.get_mut("$ref")
                && let Some(other) = to.strip_prefix(SCHEMAS).and_then(&mut *rename)
            {
                *to = format!("{SCHEMAS}{other}");
            }
            for field in fields.values_mut() {
                references(field, rename);
            }
        }
        Value::Array(items) => {
            for item in items {
                references(item, rename);
            }
        }
        _ => {}
    }
}

/// The schema without `null`, for what is absent where there is none: a parameter of a query.
fn not_null(mut schema: Value) -> Value {
    let Some(fields) = schema.as_object_mut() else {
        return schema;
    };
    fields.remove("default");
    if let Some(Value::Array(types)) = fields.get_mut("type") {
        types.retain(|of| of != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            fields.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(any)) = fields.get_mut("anyOf") {
        any.retain(|of| of["type"] != "null");
        if let [Value::Object(only)] = any.as_slice() {
            let only = only.clone();
            fields.remove("anyOf");
            fields.extend(only);
        }
    }
    schema
}

/// Says in a schema what the formats of numbers mean to those who do not know them, and leaves the links of Rust's documentation out of descriptions.
pub fn tidy(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let most = match fields.get("format").and_then(Value::as_str) {
                Some("uint32") => Some(json!(u32::MAX)),
                Some("uint64") => Some(json!(u64::MAX)),
                Some("int64") => Some(json!(i64::MAX)),
                _ => None,
            };
            if let Some(most) = most {
                fields.entry("maximum").or_insert(most);
            }
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = without_links(text);
            }
            fields.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// A text without Markdown's brackets of links to Rust's items, and with what the items are in place of their names, on one line.
fn without_links(text: &str) -> String {
    let mut rest = text;
    let mut plain = String::with_capacity(text.len());
    while let Some((before, link)) = rest.split_once('[') {
        let Some((name, after)) = link.split_once(']') else {
            break;
        };
        plain.push_str(before);
        plain.push_str(&names::meaning(name));
        rest = match after
            .strip_prefix('(')
            .and_then(|target| target.split_once(')'))
        {
            Some((_, after)) => after,
            None => after,
        };
    }
    plain.push_str(rest);
    plain.replace('\n', " ")
}

/// `get_apps_app_envs_env_logs`.
fn operation_id(call: &Call) -> String {
    let words = call
        .path
        .split(['/', '-', '.'])
        .map(|part| part.trim_matches(['{', '}']));
    let words = words.filter(|word| !word.is_empty() && *word != "v1");
    let mut id = call.method.to_lowercase();
    for word in words {
        id.push('_');
        id.push_str(word);
    }
    id
}

#[cfg(test)]
mod tests;
