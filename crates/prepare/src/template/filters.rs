//! Jinja2's filters: their names, and those of sequences.

use std::cmp::Ordering;

use super::calls::{Args, int_of};
use super::checks;
use super::limits::{Failure, Kind, Meter, Outcome, raised, type_error};
use super::operators::ordered;
use super::printing::to_str;
use super::render::Renderer;
use super::value::{Str, Undefined, Val};
use super::{iterate, json, parser::unknown, text_filters};

const NAMES: [&str; 49] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
    "xmlattr",
];

/// Filters of Jinja2 that are not here.
const REFUSED: [&str; 5] = ["pprint", "random", "striptags", "urlize", "wordwrap"];

pub(super) fn known(name: &str) -> bool {
    NAMES.contains(&name)
}

pub(super) fn refused_name(name: &str) -> bool {
    REFUSED.contains(&name)
}

/// Python's `left < right`.
pub(super) fn is_less<'t>(left: &Val<'t>, right: &Val<'t>, meter: &Meter) -> Outcome<bool> {
    Ok(ordered(left, right, meter)? == Some(Ordering::Less))
}

/// Sorted as Python sorts: what is equal keeps its order, and only `<` is asked.
pub(super) fn sorted<T>(mut items: Vec<T>, less: &mut dyn FnMut(&T, &T) -> Outcome<bool>) -> Outcome<Vec<T>> {
    if items.len() < 2 {
        return Ok(items);
    }
    let right = items.split_off(items.len() / 2);
    let mut left = sorted(items, less)?.into_iter().peekable();
    let mut right = sorted(right, less)?.into_iter().peekable();
    let mut merged = Vec::new();
    while let (Some(first), Some(second)) = (left.peek(), right.peek()) {
        merged.extend(if less(second, first)? { right.next() } else { left.next() });
    }
    merged.extend(left);
    merged.extend(right);
    Ok(merged)
}

pub(super) fn hint<'t>(text: &'static str) -> Val<'t> {
    Val::Undefined(Undefined::Hint(text))
}

pub(super) fn is_true(value: Option<&Val<'_>>) -> bool {
    value.is_some_and(Val::is_true)
}

/// How a filter takes an attribute of each item: a path, whether case counts, and what a missing one is.
pub(super) struct Getter<'t> {
    pub(super) path: Vec<Val<'t>>,
    pub(super) lower: bool,
    pub(super) default: Option<Val<'t>>,
}

impl<'t> Renderer<'t, '_> {
    /// `value | name(args)`.
    pub(super) fn filter(&mut self, name: &str, value: Val<'t>, args: Args<'t>) -> Outcome<Val<'t>> {
        self.meter.steps(1)?;
        match name {
            "default" | "d" => {
                let [default, boolean] = args.bind("default", ["default_value", "boolean"], 0)?;
                let is_default = value.is_undefined() || is_true(boolean.as_ref()) && !value.is_true();
                Ok(if is_default { default.unwrap_or(Val::borrowed("")) } else { value })
            }
            "tojson" => json::tojson(&value, args, self.meter),
            "length" | "count" => {
                let [] = args.bind("len", [], 0)?;
                if let Val::Loop(state) = value {
                    return Ok(self.loop_attribute(state, "length")?.unwrap_or(Val::None));
                }
                Ok(Val::Int(i128::try_from(iterate::length(&value)?).expect("a length fits 128 bits")))
            }
            "list" => {
                let [] = args.bind("list", [], 0)?;
                Val::list(iterate::list(&value, self.meter)?)
            }
            "items" => {
                let [] = args.bind("items", [], 0)?;
                Ok(match &value {
                    Val::Dict(dict) => {
                        self.meter.steps(dict.entries.len())?;
                        let pair =
                            |(key, value): &(Val<'t>, Val<'t>)| Val::tuple(vec![key.clone(), value.clone()]);
                        Val::generator("generator", dict.entries.iter().map(pair))
                    }
                    Val::Undefined(_) => Val::generator("generator", []),
                    _ => {
                        let failure = Failure::new(Kind::Type, "Can only get item pairs from a mapping.");
                        Val::generator("generator", [Err(failure)])
                    }
                })
            }
            "map" => self.map(&value, args),
            "select" | "reject" | "selectattr" | "rejectattr" => self.select(name, &value, args),
            "sort" | "dictsort" | "unique" | "min" | "max" | "groupby" | "sum" => {
                self.keyed(name, value, args)
            }
            "attr" => self.attr(&value, args),
            "first" | "last" => self.end(name, &value, args),
            "join" => self.join_filter(&value, args),
            "reverse" => {
                let [] = args.bind("reverse", [], 0)?;
                self.reverse(&value)
            }
            "batch" | "slice" => self.pieces(name, &value, args),
            "abs" | "int" | "float" | "round" | "filesizeformat" => {
                super::number_filters::number(name, &value, args, self.meter)
            }
            other if known(other) => text_filters::text(other, &value, args, self.meter),
            other => raised(unknown("filter", other)),
        }
    }

    pub(super) fn getter(&self, attribute: Option<&Val<'t>>, case_sensitive: bool) -> Outcome<Getter<'t>> {
        let path = match attribute {
            None | Some(Val::None) => Vec::new(),
            Some(Val::Str(path) | Val::Markup(path)) => {
                self.meter.text(path.len())?;
                let part = |part: &str| match part.parse::<u32>() {
                    Ok(index) if part.bytes().all(|digit| digit.is_ascii_digit()) => Val::Int(index.into()),
                    _ => Val::text(part),
                };
                path.split('.').map(part).collect()
            }
            Some(other) => vec![other.clone()],
        };
        Ok(Getter { path, lower: !case_sensitive, default: None })
    }

    pub(super) fn key(&mut self, item: &Val<'t>, getter: &Getter<'t>) -> Outcome<Val<'t>> {
        let mut item = item.clone();
        for part in &getter.path {
            item = self.item(&item, part)?;
            if let (Val::Undefined(_), Some(default)) = (&item, &getter.default) {
                item = default.clone();
            }
        }
        match &item {
            Val::Str(text) if getter.lower => {
                self.meter.text(text.len())?;
                Ok(Val::text(text.to_lowercase()))
            }
            _ => Ok(item),
        }
    }

    fn map(&mut self, value: &Val<'t>, mut args: Args<'t>) -> Outcome<Val<'t>> {
        if !value.is_true() {
            return Ok(Val::generator("generator", []));
        }
        let by_attribute =
            args.positional.is_empty() && args.named.iter().any(|(name, _)| &**name == "attribute");
        let made = if by_attribute {
            let [attribute, default] = args.bind("map", ["attribute", "default"], 1)?;
            let mut getter = self.getter(attribute.as_ref(), true)?;
            getter.default = default.filter(|default| !matches!(default, Val::None));
            self.mapped(value, |renderer, item| renderer.key(item, &getter))
        } else if args.positional.is_empty() {
            Err(Failure::new(Kind::Raised, "map requires a filter argument"))
        } else {
            let name = args.positional.remove(0);
            let Some(name) = name.as_str() else { return type_error("expected the name of a filter") };
            self.mapped(value, |renderer, item| renderer.filter(name, item.clone(), args.clone()))
        };
        lazily(made)
    }

    /// The items of a generator; a failure comes where it was made.
    pub(super) fn mapped(
        &mut self,
        value: &Val<'t>,
        mut make: impl FnMut(&mut Self, &Val<'t>) -> Outcome<Val<'t>>,
    ) -> Outcome<Vec<Outcome<Val<'t>>>> {
        let mut items = iterate::items(value)?;
        let mut made = Vec::new();
        while let Some(item) = items.next(self.meter)? {
            made.push(make(self, &item));
            if made.last().is_some_and(Result::is_err) {
                break;
            }
        }
        Ok(made)
    }

    fn select(&mut self, name: &str, value: &Val<'t>, mut args: Args<'t>) -> Outcome<Val<'t>> {
        if !value.is_true() {
            return Ok(Val::generator("generator", []));
        }
        let wanted = name.starts_with("select");
        let made = self.selected(value, wanted, name.ends_with("attr"), &mut args);
        lazily(made)
    }

    fn selected(
        &mut self,
        value: &Val<'t>,
        wanted: bool,
        by_attribute: bool,
        args: &mut Args<'t>,
    ) -> Outcome<Vec<Outcome<Val<'t>>>> {
        let mut positional = std::mem::take(&mut args.positional).into_iter();
        let getter = match by_attribute.then(|| positional.next()) {
            None => None,
            Some(None) => return raised("Missing parameter for attribute name"),
            Some(Some(attribute)) => Some(self.getter(Some(&attribute), true)?),
        };
        let test = positional.next();
        let args = Args { positional: positional.collect(), named: std::mem::take(&mut args.named) };
        let mut items = iterate::items(value)?;
        let mut made = Vec::new();
        while let Some(item) = items.next(self.meter)? {
            let found = match &getter {
                Some(getter) => self.key(&item, getter),
                None => Ok(item.clone()),
            };
            let passes = found.and_then(|found| match &test {
                None => Ok(found.is_true()),
                Some(test) => match test.as_str() {
                    Some(test) => checks::check(test, &found, args.clone(), self.meter),
                    None => type_error("expected the name of a test"),
                },
            });
            match passes {
                Ok(passes) if passes == wanted => made.push(Ok(item)),
                Ok(_) => {}
                Err(failure) => {
                    made.push(Err(failure));
                    break;
                }
            }
        }
        Ok(made)
    }

    fn attr(&mut self, value: &Val<'t>, args: Args<'t>) -> Outcome<Val<'t>> {
        let [name] = args.bind("attr", ["name"], 1)?;
        let name = name.expect("required");
        let Val::Str(name) = name else { return type_error("attribute name must be string") };
        // Only attributes of Python: a key of a dictionary is none.
        match self.python_attribute(value, &name)? {
            Some(found) => Ok(found),
            None => Ok(Val::Undefined(Undefined::Attribute(value.type_name(), name))),
        }
    }

    fn end(&mut self, name: &str, value: &Val<'t>, args: Args<'t>) -> Outcome<Val<'t>> {
        let [] = args.bind(name, [], 0)?;
        if name == "first" {
            let first = iterate::items(value)?.next(self.meter)?;
            return Ok(first.unwrap_or_else(|| hint("No first item, sequence was empty.")));
        }
        if matches!(value, Val::Iter(_) | Val::Undefined(_)) {
            return type_error(format!("'{}' object is not reversible", value.type_name()));
        }
        let last = iterate::list(value, self.meter)?.pop();
        Ok(last.unwrap_or_else(|| hint("No last item, sequence was empty.")))
    }

    fn join_filter(&mut self, value: &Val<'t>, args: Args<'t>) -> Outcome<Val<'t>> {
        let [separator, attribute] = args.bind("join", ["d", "attribute"], 0)?;
        let separator =
            separator.map_or(Ok(Str::Borrowed("")), |separator| to_str(&separator, self.meter))?;
        let getter = self.getter(attribute.as_ref(), true)?;
        let mut items = iterate::items(value)?;
        let mut joined = String::new();
        let mut first = true;
        while let Some(item) = items.next(self.meter)? {
            if !std::mem::take(&mut first) {
                self.meter.text(separator.len())?;
                joined.push_str(&separator);
            }
            let item = self.key(&item, &getter)?;
            super::printing::write_str(&mut joined, &item, self.meter)?;
        }
        Ok(Val::text(joined))
    }

    fn reverse(&mut self, value: &Val<'t>) -> Outcome<Val<'t>> {
        if let Some(text) = value.as_str() {
            self.meter.text(text.len())?;
            let reversed: String = text.chars().rev().collect();
            let Val::Str(reversed) = Val::text(reversed) else { unreachable!("a text") };
            return Ok(if matches!(value, Val::Str(_)) { Val::Str(reversed) } else { Val::Markup(reversed) });
        }
        let mut items = iterate::list(value, self.meter).or_else(|failure| {
            if failure.kind() == Kind::Type { raised("argument must be iterable") } else { Err(failure) }
        })?;
        items.reverse();
        if matches!(value, Val::Iter(_) | Val::Undefined(_)) {
            return Val::list(items);
        }
        Ok(Val::generator("reverse_iterator", items.into_iter().map(Ok)))
    }

    fn pieces(&mut self, name: &str, value: &Val<'t>, args: Args<'t>) -> Outcome<Val<'t>> {
        let count_name = if name == "batch" { "linecount" } else { "slices" };
        let [count, fill] = args.bind(name, [count_name, "fill_with"], 1)?;
        let fill = fill.filter(|fill| !matches!(fill, Val::None));
        let count = int_of(&count.expect("required"), self.meter)?;
        let Some(count) = usize::try_from(count).ok().filter(|count| *count > 0) else {
            return super::limits::refused(format_args!("`{name}` with a count that is not positive"));
        };
        self.meter.steps(count)?;
        let items = iterate::list(value, self.meter)?;
        let mut pieces: Vec<Vec<Val<'t>>> = Vec::new();
        if name == "batch" {
            pieces.extend(items.chunks(count).map(<[Val<'t>]>::to_vec));
            if let (Some(last), Some(fill)) = (pieces.last_mut(), fill) {
                last.resize(count, fill);
            }
        } else {
            let (each, extra) = (items.len() / count, items.len() % count);
            let mut rest = items.into_iter();
            for place in 0..count {
                let mut piece: Vec<Val<'t>> = rest.by_ref().take(each + usize::from(place < extra)).collect();
                piece.extend(fill.clone().filter(|_| place >= extra));
                pieces.push(piece);
            }
        }
        Ok(Val::generator("generator", pieces.into_iter().map(Val::list)))
    }
}

/// A generator; what fails before its first item fails when that is read.
pub(super) fn lazily(made: Outcome<Vec<Outcome<Val<'_>>>>) -> Outcome<Val<'_>> {
    match made {
        Ok(items) => Ok(Val::generator("generator", items)),
        Err(failure) if failure.kind() == Kind::Limit => Err(failure),
        Err(failure) => Ok(Val::generator("generator", [Err(failure)])),
    }
}
