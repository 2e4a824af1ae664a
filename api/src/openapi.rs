//! The API's description in OpenAPI 3, made from the types and routes that the server itself uses.
//!
//! It is kept in `resources/openapi.json`; `cargo run -p ferry-api --example openapi` writes it anew.

use serde_json::json;
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::path::{
    HttpMethod, Operation, OperationBuilder, ParameterBuilder, ParameterIn,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Type};
use utoipa::openapi::{
    ComponentsBuilder, Content, InfoBuilder, OpenApiBuilder, PathItem, PathsBuilder, Ref, RefOr,
    Required, Response, Schema,
};
use utoipa::{PartialSchema, ToSchema};

use crate::server::routes::{Entry, Method, Origin, ROUTES, Route};
use crate::wire;

/// The mark of what other monitors do not have.
const ADDITION: &str = "x-ferry-addition";
/// The types and fields that are Ferry's own, as paths into the schemas.
const ADDED: [&str; 41] = [
    "VhostUser",
    "State",
    "DeviceState",
    "EventReport",
    "Progress",
    "Operation",
    "Status",
    "Step",
    "StepReport",
    "RamProgress",
    "DeviceProgress",
    "After",
    "RestoreDevice",
    "VmConfig/properties/vhost_user",
    "VmInfo/properties/transition",
    "DeviceNode/properties/device_type",
    "DeviceNode/properties/state",
    "DeviceNode/properties/error",
    "DeviceNode/properties/features",
    "Snapshot/properties/pause",
    "Snapshot/properties/after",
    "Snapshot/properties/hold_s",
    "Snapshot/properties/prepare_ms",
    "Snapshot/properties/state_most",
    "Restore/properties/devices",
    "Unlogged",
    "Migration",
    "MigrationRole",
    "MigrationState",
    "MigrationPhase",
    "MigrationRam",
    "MigrationDevice",
    "PhaseReport",
    "PeerPhase",
    "SendMigration/properties/unlogged",
    "SendMigration/properties/throttle",
    "SendMigration/properties/state_most",
    "ReceiveMigration/properties/devices",
    "ReceiveMigration/properties/serial",
    "ReceiveMigration/properties/insecure",
    "ReceiveMigration/properties/state_most",
];

/// The description as pretty JSON, with a line break at its end.
pub fn document() -> String {
    let mut schemas = Vec::new();
    add::<wire::VmConfig>(&mut schemas);
    add::<wire::RemoveDevice>(&mut schemas);
    add::<wire::Snapshot>(&mut schemas);
    add::<wire::Restore>(&mut schemas);
    add::<wire::Progress>(&mut schemas);
    add::<wire::SendMigration>(&mut schemas);
    add::<wire::ReceiveMigration>(&mut schemas);
    add::<wire::Migration>(&mut schemas);
    add::<wire::Ping>(&mut schemas);
    add::<wire::VmInfo>(&mut schemas);
    add::<wire::EventReport>(&mut schemas);
    let components = ComponentsBuilder::new().schemas_from_iter(schemas).build();
    let mut paths = PathsBuilder::new();
    for entry in &ROUTES {
        let method = match entry.method {
            Method::Get => HttpMethod::Get,
            Method::Put => HttpMethod::Put,
        };
        paths = paths.path(entry.path, PathItem::new(method, operation(entry)));
    }
    let info = InfoBuilder::new()
        .title("Ferry")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Control of one virtual machine over a unix socket. Names and shapes are those of Cloud Hypervisor's API; \
             what Ferry adds is marked with x-ferry-addition. Unknown fields are ignored, and null is the same as absent. \
             An error's body is a list of reasons, outermost first.",
        ))
        .build();
    let description = OpenApiBuilder::new()
        .info(info)
        .paths(paths.build())
        .components(Some(components))
        .build();
    let mut value = serde_json::to_value(description).unwrap_or_default();
    for name in ADDED {
        if let Some(schema) = value.pointer_mut(&format!("/components/schemas/{name}")) {
            schema[ADDITION] = json!(true);
        }
    }
    let mut text = serde_json::to_string_pretty(&value).unwrap_or_default();
    text.push('\n');
    text
}

fn add<T: ToSchema>(schemas: &mut Vec<(String, RefOr<Schema>)>) {
    schemas.push((T::name().into_owned(), T::schema()));
    T::schemas(schemas);
}

fn operation(entry: &Entry) -> Operation {
    let name = entry.path.rsplit('/').next().unwrap_or_default();
    let mut operation = OperationBuilder::new()
        .operation_id(Some(name))
        .summary(Some(entry.summary));
    if let Some(schema) = request(entry.route) {
        let body = RequestBodyBuilder::new()
            .content("application/json", Content::new(Some(schema)))
            .required(Some(Required::True))
            .build();
        operation = operation.request_body(Some(body));
    }
    if entry.route == Route::Events {
        operation = operation
            .parameter(number(
                "after",
                "The number of the last event that the client has seen; 0 if absent.",
            ))
            .parameter(number(
                "wait",
                "Seconds to wait for an event if there is none, at most 30; 0 if absent.",
            ));
    }
    if entry.origin == Origin::Ferry {
        let mark = Extensions::builder().add(ADDITION, true).build();
        operation = operation.extensions(Some(mark));
    }
    operation = match answer(entry.route) {
        Some(content) => {
            let mut response = Response::new("The answer.");
            response
                .content
                .extend([(kind(entry.route).to_owned(), content.into())]);
            operation.response("200", response)
        }
        None => operation.response("204", Response::new("It is done.")),
    };
    let mut failure = Response::new("The reason and its causes, outermost first.");
    let chain = ArrayBuilder::new().items(text()).build();
    let content = Content::new(Some(RefOr::T(Schema::Array(chain))));
    failure
        .content
        .extend([("application/json".to_owned(), content.into())]);
    operation.response("default", failure).build()
}

fn request(route: Route) -> Option<RefOr<Schema>> {
    let name = match route {
        Route::Create => wire::VmConfig::name(),
        Route::AddDisk => wire::Disk::name(),
        Route::AddFs => wire::Fs::name(),
        Route::RemoveDevice => wire::RemoveDevice::name(),
        Route::Snapshot => wire::Snapshot::name(),
        Route::Restore => wire::Restore::name(),
        Route::SendMigration => wire::SendMigration::name(),
        Route::ReceiveMigration => wire::ReceiveMigration::name(),
        _ => return None,
    };
    Some(reference(&name))
}

fn answer(route: Route) -> Option<Content> {
    let schema = match route {
        Route::Ping => reference(&wire::Ping::name()),
        Route::Info => reference(&wire::VmInfo::name()),
        Route::Counters => <crate::control::Counters as PartialSchema>::schema(),
        Route::Progress => reference(&wire::Progress::name()),
        Route::Migration => reference(&wire::Migration::name()),
        Route::Events => {
            let events = ArrayBuilder::new().items(reference(&wire::EventReport::name()));
            RefOr::T(Schema::Array(events.build()))
        }
        Route::Metrics => text(),
        _ => return None,
    };
    Some(Content::new(Some(schema)))
}

fn kind(route: Route) -> &'static str {
    match route {
        Route::Metrics => "text/plain",
        _ => "application/json",
    }
}

fn reference(name: &str) -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name(name))
}

fn text() -> RefOr<Schema> {
    let object = ObjectBuilder::new().schema_type(Type::String).build();
    RefOr::T(Schema::Object(object))
}

fn number(name: &str, description: &str) -> ParameterBuilder {
    let object = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(0));
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(RefOr::T(Schema::Object(object.build()))))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn value() -> Value {
        serde_json::from_str(&document()).unwrap()
    }

    #[test]
    fn the_file_is_what_the_code_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../resources/openapi.json");
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            kept == document(),
            "resources/openapi.json differs from the code: cargo run -p ferry-api --example openapi writes it anew"
        );
    }

    #[test]
    fn additions_are_marked() {
        let value = value();
        let marked = |pointer: &str| value.pointer(pointer).unwrap()[ADDITION] == json!(true);
        for path in ADDED {
            assert!(marked(&format!("/components/schemas/{path}")), "{path}");
        }
        for pointer in ["/paths/~1metrics/get", "/paths/~1api~1v1~1vm.events/get"] {
            assert!(marked(pointer), "{pointer}");
        }
        for pointer in ["/paths/~1api~1v1~1vm.info/get", "/components/schemas/Disk"] {
            assert!(!marked(pointer), "{pointer}");
        }
    }

    /// Every reference leads somewhere.
    #[test]
    fn it_is_complete() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(reference)) = map.get("$ref") {
                        found.push(reference.clone());
                    }
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(list) => list.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let value = value();
        let mut found = Vec::new();
        references(&value, &mut found);
        assert!(found.len() > 10);
        for reference in found {
            let pointer = reference.trim_start_matches('#');
            assert!(value.pointer(pointer).is_some(), "{reference}");
        }
        assert_eq!(value["paths"].as_object().unwrap().len(), ROUTES.len());
    }
}
