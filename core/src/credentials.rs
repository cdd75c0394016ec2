//! Request fields that carry credentials, and fields that change which request a handler sees.
//!
//! A stored response answers requests that don't show the first request's credentials. So these fields keep a request
//! out of the cache, or are hidden from the handler whose response may be stored, as the [`Rule`](crate::Rule) states.
//! A shared cache hides no fields: it stores by RFC 9111 §3.5, treats a request that overrides the method as a write,
//! and gives requests that override the target keys of their own.

/// Returns `true` if a field other than `Authorization` and `Cookie` usually carries credentials: a key, a token, a
/// client certificate, or the user name from an authenticating proxy. `name` is in lower case.
pub(crate) fn is_other_credential(name: &str) -> bool {
    // The first letter rules out nearly all fields without a string comparison.
    match name.as_bytes().first() {
        Some(b'x') => is_extension_credential(name),
        Some(b'p') => matches!(name, "proxy-authorization" | "private-token"),
        Some(b'a') => matches!(name, "access-token" | "api-key" | "apikey" | "auth-token"),
        Some(b'c') => {
            matches!(name, "client-cert" | "client-cert-chain" | "cf-authorization")
                || name.starts_with("cf-access-")
        }
        Some(b's') => matches!(name, "session-token" | "signature") || name.starts_with("ssl-client-"),
        Some(b'd') => name == "dpop",
        Some(b'i') => name == "id-token",
        Some(b'j') => name == "job-token",
        Some(b'o') => name == "ocp-apim-subscription-key",
        Some(b'r') => name == "remote-user",
        Some(b't') => name == "token" || name.starts_with("tailscale-user-"),
        _ => false,
    }
}

fn is_extension_credential(name: &str) -> bool {
    const NAMES: [&str; 33] = [
        "x-access-token",
        "x-api-key",
        "x-api-token",
        "x-apikey",
        "x-arr-clientcert",
        "x-auth-key",
        "x-auth-token",
        "x-authorization",
        "x-authenticated-user",
        "x-authenticated-userid",
        "x-client-cert",
        "x-credential-identifier",
        "x-endpoint-api-userinfo",
        "x-apigateway-api-userinfo",
        "x-forwarded-access-token",
        "x-forwarded-authorization",
        "x-forwarded-client-cert",
        "x-forwarded-email",
        "x-forwarded-groups",
        "x-forwarded-preferred-username",
        "x-forwarded-user",
        "x-functions-key",
        "x-goog-api-key",
        "x-goog-iap-jwt-assertion",
        "x-id-token",
        "x-jwt-assertion",
        "x-rapidapi-key",
        "x-session-id",
        "x-session-token",
        "x-shopify-access-token",
        "x-userinfo",
        "x-vault-token",
        "x-webauth-user",
    ];
    const PREFIXES: [&str; 12] = [
        "x-amz-security-",
        "x-amzn-mtls-clientcert",
        "x-amzn-oidc-",
        "x-appengine-user-",
        "x-auth-request-",
        "x-client-certificate",
        "x-consumer-",
        "x-forwarded-tls-client-cert",
        "x-goog-authenticated-user-",
        "x-ms-client-principal",
        "x-remote-",
        "x-ssl-client-",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Returns `true` if a field usually carries credentials.
pub(crate) fn is_credential(name: &str) -> bool {
    matches!(name, "authorization" | "cookie") || is_other_credential(name)
}

/// Returns `true` if some frameworks take the method or the URI from this field. The handler would then answer another
/// request than the one in the key.
pub(crate) fn replaces_target(name: &str) -> bool {
    name.starts_with('x') && (replaces_method(name) || replaces_uri(name))
}

/// Returns `true` if some frameworks take the method from this field.
pub(crate) fn replaces_method(name: &str) -> bool {
    matches!(
        name,
        "x-http-method"
            | "x-http-method-override"
            | "x-method-override"
            | "x-forwarded-method"
            | "x-original-method"
    )
}

fn replaces_uri(name: &str) -> bool {
    matches!(
        name,
        "x-http-path-override"
            | "x-forwarded-path"
            | "x-forwarded-uri"
            | "x-original-uri"
            | "x-original-url"
            | "x-override-url"
            | "x-rewrite-url"
    )
}

/// Returns `true` if frameworks or servers may take the host, scheme or path from this field instead of the request
/// line and `Host`.
pub(crate) fn may_send_elsewhere(name: &str) -> bool {
    names_origin(name) || (name.starts_with('x') && replaces_uri(name))
}

/// Returns `true` if a field is one of [`ORIGIN_FIELDS`].
pub(crate) fn names_origin(name: &str) -> bool {
    // The first letter rules out nearly all fields without a string comparison.
    matches!(name.as_bytes(), [b'f' | b'x', ..]) && ORIGIN_FIELDS.contains(&name)
}

/// The fields in which a proxy names the origin that its client requested. A handler may build absolute links from
/// them.
pub(crate) const ORIGIN_FIELDS: [&str; 16] = [
    "forwarded",
    "front-end-https",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-protocol",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-forwarded-ssl",
    "x-host",
    "x-http-host-override",
    "x-original-host",
    "x-scheme",
    "x-script-name",
    "x-url-scheme",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_credentials_are_known() {
        for name in [
            "authorization",
            "cookie",
            "proxy-authorization",
            "x-api-key",
            "api-key",
            "x-auth-token",
            "x-access-token",
            "x-forwarded-user",
            "x-remote-user",
            "remote-user",
            "x-amzn-oidc-identity",
            "x-amzn-oidc-data",
            "cf-access-jwt-assertion",
            "x-goog-iap-jwt-assertion",
            "x-forwarded-access-token",
            "x-client-cert",
            "x-ssl-client-cert",
            "x-ssl-client-verify",
            "ssl-client-cert",
            "ssl-client-subject-dn",
            "client-cert",
            "x-forwarded-client-cert",
            "x-forwarded-tls-client-cert-info",
        ] {
            assert!(is_credential(name), "{name}");
        }
    }

    #[test]
    fn ordinary_fields_are_not_credentials() {
        for name in [
            "accept",
            "accept-encoding",
            "cache-control",
            "connection",
            "content-type",
            "dnt",
            "host",
            "if-none-match",
            "origin",
            "pragma",
            "priority",
            "range",
            "referer",
            "sec-fetch-mode",
            "te",
            "traceparent",
            "user-agent",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-real-ip",
            "x-request-id",
            "x-requested-with",
            "x-tenant",
        ] {
            assert!(!is_credential(name) && !replaces_target(name), "{name}");
        }
    }

    #[test]
    fn every_origin_field_may_change_the_target() {
        for name in ORIGIN_FIELDS {
            assert!(may_send_elsewhere(name), "{name}");
        }
        for name in ["x-forwarded-path", "x-http-path-override", "x-override-url", "x-rewrite-url"] {
            assert!(may_send_elsewhere(name) && replaces_target(name), "{name}");
        }
        for name in ["x-forwarded-method", "x-forwarded-for", "x-requested-with", "from", "accept"] {
            assert!(!may_send_elsewhere(name), "{name}");
        }
    }
}
