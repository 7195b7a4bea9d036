//! As much XML as EC2's answers need.

/// The text of the first element of that name.
pub fn text<'x>(xml: &'x str, name: &str) -> Option<&'x str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

/// What the elements named `item` right below `set` hold.
pub fn items<'x>(xml: &'x str, set: &str) -> Vec<&'x str> {
    const BEGIN: &str = "<item>";
    const END: &str = "</item>";
    let Some(mut rest) = text(xml, set) else { return Vec::new() };
    let mut found = Vec::new();
    while let Some(from) = rest.find(BEGIN) {
        let body = &rest[from + BEGIN.len()..];
        let (mut depth, mut at) = (1, 0);
        while depth > 0 {
            let end = body[at..].find(END).unwrap_or_else(|| panic!("an item has no end: {xml}"));
            match body[at..].find(BEGIN).filter(|begin| *begin < end) {
                Some(begin) => (depth, at) = (depth + 1, at + begin + BEGIN.len()),
                None => (depth, at) = (depth - 1, at + end + END.len()),
            }
        }
        found.push(&body[..at - END.len()]);
        rest = &body[at..];
    }
    found
}

/// `xml` with other items in `set`, and behind it where the next page begins.
pub fn with_items(xml: &str, set: &str, items: &[String], next: Option<usize>) -> String {
    let Some(old) = text(xml, set) else { return xml.to_owned() };
    let new: String = items.iter().map(|i| format!("<item>{i}</item>")).collect();
    let next = next.map_or(String::new(), |at| format!("<nextToken>{at}</nextToken>"));
    xml.replacen(&format!("<{set}>{old}</{set}>"), &format!("<{set}>{new}</{set}>{next}"), 1)
}

/// `item` with another text in the first element of that name.
pub fn with_text(item: &str, name: &str, new: &str) -> String {
    let old = text(item, name).unwrap_or_else(|| panic!("no {name} in {item}"));
    item.replacen(&format!("<{name}>{old}</{name}>"), &format!("<{name}>{new}</{name}>"), 1)
}

#[test]
fn items_are_divided_whatever_they_hold() {
    let xml = "<a><s><item><t><item>1</item></t><status>x</status></item><item>2</item></s></a>";
    assert_eq!(items(xml, "s"), ["<t><item>1</item></t><status>x</status>", "2"]);
    let page = with_items(xml, "s", &[with_text(items(xml, "s")[0], "status", "y")], Some(1));
    assert_eq!(
        page,
        "<a><s><item><t><item>1</item></t><status>y</status></item></s><nextToken>1</nextToken></a>"
    );
}
