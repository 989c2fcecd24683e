"""Who chats."""

import pytest
from django.contrib.auth.models import User


@pytest.fixture
def alice(db):
    return User.objects.create_user("alice")


@pytest.fixture
def page(client, alice):
    client.force_login(alice)
    return client
