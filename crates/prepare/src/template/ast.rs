//! A template as a tree. Names are resolved to places by [`super::scope`].

/// Where a variable lies: in which function, counted outwards, and where there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) up: usize,
    pub(super) slot: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Name {
    pub(super) name: Box<str>,
    pub(super) place: Place,
}

/// How a variable of a scope begins.
#[derive(Clone, Debug)]
pub(super) enum Load {
    /// As the variable of that name that the template is given.
    Given(usize, Box<str>),
    /// As a variable of an outer scope.
    Outer(usize, Place),
    /// Not at all.
    Missing(usize),
}

/// What a scope does when it is entered.
pub(super) type Loads = Vec<Load>;

#[derive(Clone, Debug)]
pub(super) enum Const {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Box<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    NotIn,
}

#[derive(Clone, Debug)]
pub(super) enum Expr {
    Const(Const),
    Name(Name),
    Tuple(Vec<Expr>),
    List(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Condition { test: Box<Expr>, yes: Box<Expr>, no: Option<Box<Expr>> },
    And(Box<(Expr, Expr)>),
    Or(Box<(Expr, Expr)>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Binary(Binary, Box<(Expr, Expr)>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    Attribute(Box<Expr>, Box<str>),
    Item(Box<(Expr, Expr)>),
    Slice(Box<[Option<Expr>; 3]>),
    Call(Box<Call>),
    Filter(Box<Applied>),
    Test(Box<Applied>),
}

#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) function: Expr,
    pub(super) arguments: Arguments,
}

/// A filter or a test on a value. A filter of a block has no value of its own.
#[derive(Clone, Debug)]
pub(super) struct Applied {
    pub(super) value: Option<Expr>,
    pub(super) name: Box<str>,
    pub(super) arguments: Arguments,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(Box<str>, Expr)>,
    pub(super) more_positional: Option<Expr>,
    pub(super) more_named: Option<Expr>,
}

#[derive(Clone, Debug)]
pub(super) enum Target {
    Name(Name),
    Tuple(Vec<Target>),
    /// `namespace.attribute`
    Attribute(Name, Box<str>),
}

#[derive(Clone, Debug)]
pub(super) struct Stmt {
    pub(super) line: usize,
    pub(super) kind: StmtKind,
}

#[derive(Clone, Debug)]
pub(super) enum StmtKind {
    Data(Box<str>),
    Print(Expr),
    If(Vec<(Expr, Vec<Stmt>)>, Vec<Stmt>),
    For(Box<For>),
    Set(Target, Expr),
    SetBlock(Box<SetBlock>),
    With(Box<With>),
    FilterBlock(Box<FilterBlock>),
    Macro(Name, Box<Function>),
    Call(Box<CallBlock>),
    /// What the model writes: the body is a function of its own, as in transformers.
    Generation(Box<Function>),
    Break,
    Continue,
}

#[derive(Clone, Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) items: Expr,
    pub(super) filter: Option<LoopFilter>,
    pub(super) recursive: bool,
    pub(super) body: Vec<Stmt>,
    pub(super) otherwise: Vec<Stmt>,
    /// The variable `loop`, where the body reads it.
    pub(super) loop_slot: Option<usize>,
    pub(super) loads: Loads,
    pub(super) otherwise_loads: Loads,
    /// How many variables its function has, if it is one: a recursive loop.
    pub(super) slots: usize,
}

/// The `if` of a loop, with variables of its own for the item.
#[derive(Clone, Debug)]
pub(super) struct LoopFilter {
    pub(super) target: Target,
    pub(super) test: Expr,
    pub(super) loads: Loads,
}

#[derive(Clone, Debug)]
pub(super) struct SetBlock {
    pub(super) target: Target,
    pub(super) filter: Option<Expr>,
    pub(super) body: Vec<Stmt>,
    pub(super) loads: Loads,
}

#[derive(Clone, Debug)]
pub(super) struct With {
    pub(super) assignments: Vec<(Target, Expr)>,
    pub(super) body: Vec<Stmt>,
    pub(super) loads: Loads,
}

#[derive(Clone, Debug)]
pub(super) struct FilterBlock {
    pub(super) filter: Expr,
    pub(super) body: Vec<Stmt>,
    pub(super) loads: Loads,
}

#[derive(Clone, Debug)]
pub(super) struct CallBlock {
    pub(super) call: Expr,
    pub(super) body: Function,
}

/// A macro, or the body of a call block or of a generation block.
#[derive(Clone, Debug, Default)]
pub(super) struct Function {
    pub(super) name: Option<Box<str>>,
    pub(super) parameters: Vec<Name>,
    /// Of the last parameters.
    pub(super) defaults: Vec<Expr>,
    pub(super) body: Vec<Stmt>,
    pub(super) loads: Loads,
    /// The variables `caller`, `kwargs` and `varargs`, where the body reads them.
    pub(super) caller: Option<usize>,
    pub(super) kwargs: Option<usize>,
    pub(super) varargs: Option<usize>,
    pub(super) slots: usize,
}
