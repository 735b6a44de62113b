"""Static files under names that carry a hash of their content, so that browsers keep them."""

from django.contrib.staticfiles.storage import ManifestStaticFilesStorage


class HashedStaticFilesStorage(ManifestStaticFilesStorage):
    """Also rewrites `import … from "./x.js"` in ES modules to the hashed names."""

    support_js_module_import_aggregation = True
