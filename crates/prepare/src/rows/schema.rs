//! The columns of a Parquet file as a tree: which leaf says what, and at which levels something is there.
//!
//! Values of nested columns come as leaves with two levels each (Dremel's, as the Parquet format has them): the
//! definition level says how much of the path to the leaf is there, the repetition level which list goes on.

use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::schema::types::{BasicTypeInfo, Type};

/// Deeper ones are no rows but an attack on the stack.
const MAX_DEPTH: usize = 64;

/// A column, or what is in it.
#[derive(Debug, PartialEq)]
pub(super) enum Node {
    Leaf {
        leaf: usize,
    },
    /// An object, there from `level` on.
    Group {
        level: i16,
        fields: Vec<(String, Self)>,
    },
    /// A list, there from `level` on and with items above it; an item that goes on a list has `repetition`.
    List {
        level: i16,
        repetition: i16,
        item: Box<Self>,
    },
}

/// What the values of a leaf are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaf {
    Text,
    Json,
    /// Whole numbers without a sign, kept in a signed type.
    Unsigned,
    Plain,
    /// Decimals, half precision and what else has no like in JSON.
    Other,
}

impl Node {
    /// The leaf that tells whether the node is there, and every other leaf below it.
    pub(super) fn leaves(&self, found: &mut Vec<usize>) {
        match self {
            Self::Leaf { leaf } => found.push(*leaf),
            Self::Group { fields, .. } => fields.iter().for_each(|(_, field)| field.leaves(found)),
            Self::List { item, .. } => item.leaves(found),
        }
    }

    pub(super) fn first_leaf(&self) -> Option<usize> {
        match self {
            Self::Leaf { leaf } => Some(*leaf),
            Self::Group { fields, .. } => fields.iter().find_map(|(_, field)| field.first_leaf()),
            Self::List { item, .. } => item.first_leaf(),
        }
    }
}

/// Builds nodes; leaves are numbered in the order of the schema.
#[derive(Default)]
pub(super) struct Builder {
    pub(super) leaves: Vec<Leaf>,
}

impl Builder {
    /// The node of a field below `level` and `repetition`.
    pub(super) fn node(
        &mut self,
        field: &Type,
        level: i16,
        repetition: i16,
        depth: usize,
    ) -> Result<Node, String> {
        if depth > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} types inside of each other"));
        }
        let info = field.get_basic_info();
        match repetition_of(info) {
            Repetition::REQUIRED => self.there(field, level, repetition, depth),
            Repetition::OPTIONAL => self.there(field, level + 1, repetition, depth),
            // A repeated field that is not in a list is one.
            Repetition::REPEATED => {
                let item = Box::new(self.there(field, level + 1, repetition + 1, depth)?);
                Ok(Node::List { level, repetition: repetition + 1, item })
            }
        }
    }

    /// The node of a field that is there from `level` on.
    fn there(&mut self, field: &Type, level: i16, repetition: i16, depth: usize) -> Result<Node, String> {
        let Type::GroupType { fields, .. } = field else {
            self.leaves.push(leaf(field));
            return Ok(Node::Leaf { leaf: self.leaves.len() - 1 });
        };
        let info = field.get_basic_info();
        let is_list = info.converted_type() == ConvertedType::LIST
            || info.logical_type_ref() == Some(&LogicalType::List);
        if let ([repeated], true) = (fields.as_slice(), is_list)
            && repetition_of(repeated.get_basic_info()) == Repetition::REPEATED
        {
            let (inner_level, inner_repetition) = (level + 1, repetition + 1);
            let item = match repeated.as_ref() {
                Type::GroupType { fields, .. } if !is_item(repeated, field.name()) => {
                    self.node(&fields[0], inner_level, inner_repetition, depth + 1)?
                }
                _ => self.there(repeated, inner_level, inner_repetition, depth + 1)?,
            };
            return Ok(Node::List { level, repetition: inner_repetition, item: Box::new(item) });
        }
        let fields = fields
            .iter()
            .map(|field| Ok((field.name().to_owned(), self.node(field, level, repetition, depth + 1)?)));
        Ok(Node::Group { level, fields: fields.collect::<Result<_, String>>()? })
    }
}

/// Whether the repeated group in a list is the item itself, as old writers have it (the format's rules for lists).
fn is_item(repeated: &Type, list: &str) -> bool {
    let Type::GroupType { fields, .. } = repeated else { return true };
    fields.len() != 1 || repeated.name() == "array" || repeated.name() == format!("{list}_tuple")
}

fn repetition_of(info: &BasicTypeInfo) -> Repetition {
    if info.has_repetition() { info.repetition() } else { Repetition::REQUIRED }
}

fn leaf(field: &Type) -> Leaf {
    let info = field.get_basic_info();
    match (info.converted_type(), info.logical_type_ref()) {
        (ConvertedType::JSON, _) | (_, Some(LogicalType::Json)) => Leaf::Json,
        (ConvertedType::UTF8 | ConvertedType::ENUM, _)
        | (_, Some(LogicalType::String | LogicalType::Enum)) => Leaf::Text,
        (ConvertedType::DECIMAL | ConvertedType::INTERVAL | ConvertedType::BSON, _)
        | (_, Some(LogicalType::Decimal(_) | LogicalType::Float16)) => Leaf::Other,
        (
            ConvertedType::UINT_8 | ConvertedType::UINT_16 | ConvertedType::UINT_32 | ConvertedType::UINT_64,
            _,
        ) => Leaf::Unsigned,
        _ if matches!(field.get_physical_type(), Physical::INT96 | Physical::FIXED_LEN_BYTE_ARRAY) => {
            Leaf::Other
        }
        _ => Leaf::Plain,
    }
}
