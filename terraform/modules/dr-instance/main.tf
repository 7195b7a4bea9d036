# A machine in the DR region to recover on, and then to run on. It asks nothing of the home region: keep its state, too, out of there.

locals {
  tags = merge(var.tags, { "mysql-pitr:shard" = var.shard })
}

resource "aws_instance" "dr" {
  ami                    = var.ami
  instance_type          = var.instance_type
  subnet_id              = var.subnet_id
  vpc_security_group_ids = var.security_group_ids
  ebs_optimized          = true
  monitoring             = true
  key_name               = var.key_name
  user_data              = var.user_data

  # The wider role for the recovery, the agent's own before and after: changed in place, the instance stays.
  iam_instance_profile = var.recovery_active ? var.recovery_instance_profile : var.agent_instance_profile

  # IMDSv2 only.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  root_block_device {
    encrypted   = true
    kms_key_id  = var.kms_key_arn
    volume_size = var.root_gib
    volume_type = "gp3"
    tags        = local.tags
  }

  tags = merge(local.tags, { Name = var.name })

  lifecycle {
    # A newer image is no reason to throw a recovered server away.
    ignore_changes = [ami, user_data]
  }
}

# The newest whole snapshot in this region, by the agent's tag.
data "aws_ebs_snapshot" "latest" {
  count       = var.volume == null ? 0 : var.volume.snapshot_id == null ? 1 : 0
  most_recent = true
  owners      = ["self"]

  filter {
    name   = "tag:mysql-pitr:shard"
    values = [var.shard]
  }

  filter {
    name   = "status"
    values = ["completed"]
  }
}

resource "aws_ebs_volume" "data" {
  #checkov:skip=CKV2_AWS_2:It is encrypted by the line below; the check does not look through the condition of count.
  #checkov:skip=CKV2_AWS_9:Backed up by mysql-pitr itself, whose agent takes over here.
  count             = var.volume == null ? 0 : 1
  availability_zone = aws_instance.dr.availability_zone
  snapshot_id       = coalesce(var.volume.snapshot_id, one(data.aws_ebs_snapshot.latest[*].id))
  type              = var.volume.type
  iops              = var.volume.iops
  throughput        = var.volume.throughput
  encrypted         = true
  kms_key_id        = var.kms_key_arn
  tags              = merge(local.tags, { Name = "${var.name}-data" })

  # So that the snapshot's blocks are there before they are asked for.
  volume_initialization_rate = var.volume.initialization_rate

  lifecycle {
    # "The newest" is another one tomorrow, and this volume holds a server by then.
    ignore_changes = [snapshot_id]
  }
}

resource "aws_volume_attachment" "data" {
  count                          = var.volume == null ? 0 : 1
  device_name                    = var.volume.device_name
  instance_id                    = aws_instance.dr.id
  volume_id                      = aws_ebs_volume.data[0].id
  stop_instance_before_detaching = true
}
