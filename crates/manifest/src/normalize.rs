//! The canonical JSON of a manifest: the authored form with every default filled in, as RFC 8785
//! writes JSON (keys sorted, no white space, one spelling of each value). Equal manifests give
//! equal bytes, so the bytes can be hashed, compared and kept.

use serde_json::Value;

use crate::model::Manifest;
use crate::resolve;

/// The canonical JSON of the manifest, without a new line at the end.
///
/// It is what the manifest would be as JSON with nothing left to defaults: durations and sizes are
/// texts with units, in the largest unit that divides them. The schema accepts it.
pub fn normalize(manifest: &Manifest) -> String {
    let mut out = String::new();
    // The authored form is texts, numbers, lists and tables with text keys: it is JSON.
    let value = serde_json::to_value(resolve::write(manifest)).unwrap_or_default();
    write(&value, &mut out);
    out
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            // Keys are ASCII, where the order of bytes is the order of UTF-16 that RFC 8785 wants.
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by(|a, b| a.0.cmp(b.0));
            out.push('{');
            for (index, (key, value)) in entries.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                out.push_str(&Value::String(key.clone()).to_string());
                out.push(':');
                write(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        // The only floats are numbers of cores: whole ones are written without a fraction.
        Value::Number(number) => out.push_str(number.to_string().trim_end_matches(".0")),
        other => out.push_str(&other.to_string()),
    }
}
