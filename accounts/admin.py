"""People and tiers for staff, and the rule that keeps what people wrote from staff."""

from typing import Any, ClassVar

from django.conf import settings
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group
from django.db import models
from django.http import HttpRequest

from accounts.models import Tier, User

Names = tuple[str, ...]


def staff(request: HttpRequest) -> User:
    """Who asks for a page of the admin: nobody else gets there."""
    assert isinstance(request.user, User)
    return request.user


class ContentHidingAdmin(admin.ModelAdmin):
    """Rows that carry what people or models wrote: readable by staff only where a setting allows.

    `content` names the fields and methods that show it. They leave the form, the list and
    the search, which would tell letter by letter what it may not show.
    """

    content: ClassVar[Names] = ()

    def hidden(self) -> Names:
        return () if settings.ADMIN_SEES_MESSAGES else self.content

    def shown(self, names: Any) -> list[Any]:
        return [name for name in names if str(name).lstrip("^=@") not in self.hidden()]

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Django lets staff filter by any column of the table through the address."""
        is_hidden = lookup.split("__", maxsplit=1)[0] in self.hidden()
        return not is_hidden and super().lookup_allowed(lookup, value, request)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return self.shown(super().get_fields(request, obj))

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        return self.shown(super().get_list_display(request))

    def get_search_fields(self, request: HttpRequest) -> list[Any]:
        return self.shown(super().get_search_fields(request))

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Any]:
        columns = {field.name for field in self.model._meta.concrete_fields}
        return super().get_queryset(request).defer(*columns.intersection(self.hidden()))


class RecordAdmin(ContentHidingAdmin):
    """Rows the site writes and nobody edits: staff may look, search and delete."""

    show_full_result_count = False
    list_per_page = 50

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class PartAdmin(RecordAdmin):
    """Rows that go with what they belong to, and never alone."""

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        page = request.resolver_match
        own = f"{self.opts.app_label}_{self.opts.model_name}_"
        is_alone = page is not None and (page.url_name or "").startswith(own)
        return not is_alone and super().has_delete_permission(request, obj)


# Rights are given by superusers alone: who may change people or groups would give them to itself.
RIGHTS = ("is_staff", "is_superuser", "groups", "user_permissions")

admin.site.unregister(Group)


@admin.register(Group)
class RightsAdmin(GroupAdmin):
    def has_add_permission(self, request: HttpRequest) -> bool:
        return staff(request).is_superuser

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return staff(request).is_superuser

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return staff(request).is_superuser


@admin.register(User)
class PersonAdmin(UserAdmin):
    list_display = ("username", "is_guest", "tier", "is_staff", "is_active", "date_joined")
    list_filter = ("is_guest", "tier", "is_staff", "is_superuser", "is_active")
    list_select_related = ("tier",)
    search_fields = ("username", "email")
    date_hierarchy = "date_joined"
    show_full_result_count = False
    readonly_fields = ("last_login", "date_joined")
    fieldsets = (
        *(UserAdmin.fieldsets or ()),
        ("This site", {"fields": ("is_guest", "tier")}),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[Any, ...]:
        fixed = tuple(super().get_readonly_fields(request, obj))
        return fixed if staff(request).is_superuser else fixed + RIGHTS

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_change_permission(request, obj) and _is_below(staff(request), obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_delete_permission(request, obj) and _is_below(staff(request), obj)


def _is_below(asker: User, person: User | None) -> bool:
    """Who sets somebody's password can be them."""
    return asker.is_superuser or person is None or not (person.is_staff or person.is_superuser)


@admin.register(Tier)
class TierAdmin(admin.ModelAdmin):
    # Its other limits are not enforced yet.
    list_display = fields = ("slug", "name", "priority", "weight", "concurrent_runs")
    search_fields = ("slug", "name")
    prepopulated_fields: ClassVar = {"slug": ("name",)}
