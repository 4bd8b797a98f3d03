//! Where points come from, one after the other, and which ids they have.

use super::{
    super::{
        collection::{Collection, id_text},
        progress::Extent,
        row::Row,
        server::Failure,
        settings::Settings,
    },
    Names,
};
use annal::model::PointId;
use serde_json::{Value, value::RawValue};

/// Points to be read once, from first to last.
pub(in crate::cli) trait Source: Send {
    /// How much there is.
    fn extent(&self) -> Extent;

    /// How much of the extent the rows given so far are.
    fn passed(&self) -> u64;

    /// How its rows are called.
    fn names(&self) -> Names;

    /// The next point; none behind the last.
    ///
    /// Errors: names the row, line or field. Nothing can be read behind it.
    fn next(&mut self) -> Result<Option<Row>, Failure>;

    /// What the points are like, if it says more of that than its first point.
    fn settings(&mut self) -> Result<Option<Settings>, Failure> {
        Ok(None)
    }

    /// Where the content of its rows is fetched, if it gives ids only.
    fn origin(&self) -> Option<Collection> {
        None
    }
}

/// Where ids come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Ids {
    /// From the place where the format has them, else rows' numbers.
    Usual,
    /// A field of the payload, which stays there.
    Field(String),
    /// Rows' numbers.
    Rows,
}

impl Ids {
    /// The id as JSON text: of the row with this number, of what the format says, or of a field of the payload.
    ///
    /// Errors: what is wrong with it.
    pub(in crate::cli) fn of(
        &self,
        number: u64,
        said: Option<PointId>,
        payload: Option<&RawValue>,
    ) -> Result<String, String> {
        match self {
            Ids::Usual => Ok(said.map_or_else(|| number.to_string(), id_text)),
            Ids::Rows => Ok(number.to_string()),
            Ids::Field(field) => {
                let payload = payload.map_or("{}", RawValue::get);
                let object: Value = serde_json::from_str(payload).map_err(|e| e.to_string())?;
                let id = object.get(field).ok_or_else(|| format!("the payload has no field {field}"))?;
                id_of(id).map(id_text).map_err(|why| format!("{field}: {why}"))
            }
        }
    }
}

/// A number, or a string that holds a number or a UUID.
pub(in crate::cli) fn id_of(value: &Value) -> Result<PointId, String> {
    let id = match value {
        Value::Number(number) => number.as_u64().map(PointId::Num),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    id.ok_or_else(|| format!("{value} is no id: an unsigned 64-bit number or a UUID"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_from_three_places() {
        let payload = RawValue::from_string(
            r#"{"n":7,"u":"550E8400E29B41D4A716446655440000","s":"12","f":1.5,"w":"x"}"#.to_owned(),
        )
        .unwrap();
        let field = |name: &str| Ids::Field(name.to_owned()).of(3, Some(PointId::Num(9)), Some(&payload));
        assert_eq!(field("n").unwrap(), "7");
        assert_eq!(field("s").unwrap(), "12");
        assert_eq!(field("u").unwrap(), "\"550e8400-e29b-41d4-a716-446655440000\"");
        assert_eq!(field("f").unwrap_err(), "f: 1.5 is no id: an unsigned 64-bit number or a UUID");
        assert_eq!(field("w").unwrap_err(), "w: \"x\" is no id: an unsigned 64-bit number or a UUID");
        assert_eq!(field("z").unwrap_err(), "the payload has no field z");
        assert_eq!(Ids::Usual.of(3, Some(PointId::Num(9)), None).unwrap(), "9");
        assert_eq!(Ids::Usual.of(3, None, None).unwrap(), "3");
        assert_eq!(Ids::Rows.of(3, Some(PointId::Num(9)), None).unwrap(), "3");
    }
}
