//! Answers before they are framed.

use std::sync::Arc;
use std::time::Duration;

use super::xml;

/// An answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Arc<Vec<u8>>,
    /// The code of an error document, which takes the place of the body once the request's number is known.
    pub(super) code: Option<&'static str>,
    /// Elements of the error document beside the usual ones.
    pub(super) details: String,
    /// The number of blanks before the body, and the pause after them.
    pub(super) lead: Option<(usize, Duration)>,
    /// The violation of the client.
    pub(super) violation: Option<String>,
}

impl Reply {
    /// An answer without a body.
    pub(super) fn empty(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// An answer with an error document.
    pub(super) fn error(status: u16, code: &'static str) -> Self {
        let reply = Self { status, code: Some(code), ..Self::default() };
        reply.header("Content-Type", "application/xml")
    }

    /// 200 and a document with this root.
    pub(super) fn document(root: &str, content: &str) -> Self {
        Self::xml(xml::document(root, content))
    }

    /// 200 and this document.
    pub(super) fn xml(document: String) -> Self {
        let reply = Self { status: 200, body: Arc::new(document.into_bytes()), ..Self::default() };
        reply.header("Content-Type", "application/xml")
    }

    /// 400, because the body is no proper XML of its kind.
    pub(super) fn malformed(why: &str) -> Self {
        Self { violation: Some(format!("XML: {why}")), ..Self::error(400, "MalformedXML") }
    }

    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn detail(mut self, name: &str, text: &str) -> Self {
        self.details.push_str(&xml::tag(name, text));
        self
    }

    /// The operation was done.
    pub(super) fn is_success(&self) -> bool {
        self.status < 400
    }

    /// Writes the error document, if there is one to write.
    pub(super) fn finish(&mut self, request_id: &str) {
        self.headers.push(("x-amz-request-id".to_owned(), request_id.to_owned()));
        if let Some(code) = self.code {
            let document = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error>{}{}{}{}</Error>",
                xml::tag("Code", code),
                xml::tag("Message", "The fault server says so."),
                self.details,
                xml::tag("RequestId", request_id),
            );
            self.body = Arc::new(document.into_bytes());
        }
    }
}
